"""A storage's own MLflow store after the storage was moved or copied.

MLflow keeps the artifacts' absolute places. After a move no artifact would be found, and a copy would write
into the original's.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from tune_rescon.tracking.worker_client import CallError, RetryPolicy

__all__ = ["follow_artifacts"]

_LOGGER: Final = logging.getLogger(__name__)

#: Seconds to wait for another writer; the call is repeated after that.
_BUSY_SECONDS: Final = 5.0

#: Where MLflow keeps places of artifacts (its tables since 3.0).
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

#: Experiments that searches made, by the tag that they gave them, in a storage that was elsewhere.
_MOVED: Final = """
    SELECT DISTINCT artifact_location FROM experiments
    JOIN experiment_tags ON experiment_tags.experiment_id = experiments.experiment_id
    WHERE experiment_tags.key = 'mlflow.experiment.primaryMetric.name'
    AND artifact_location LIKE 'file://%/' || ? AND artifact_location != ?
"""


def follow_artifacts(file: Path, artifacts: Path) -> None:
    """Have the SQLite store ``file`` find its searches' artifacts in ``artifacts``, the directory beside it.

    Only experiments that a search made in a storage's own directory are changed; others keep their places. A
    store whose tables are others is left as it is, with a line in the log.

    Raises:
        CallError: another process has the store locked. Without this step, artifacts would be written where
            the storage was before.
    """
    here = artifacts.resolve().as_uri()
    uri = f"{file.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as store, store:
            for (there,) in store.execute(_MOVED, (artifacts.name, here)).fetchall():
                for table, column in _PLACES:
                    store.execute(
                        f"UPDATE {table} SET {column} = :here || substr({column}, length(:there) + 1)"
                        f" WHERE {column} = :there OR {column} LIKE :there || '/%'",
                        {"here": here, "there": there},
                    )
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise CallError(str(error), RetryPolicy.AGAIN) from error
        _LOGGER.warning("the places of artifacts in %s could not be looked at: %s", file, error)
