"""Update the artifact paths in a storage's own MLflow store after the storage was moved or copied.

MLflow stores absolute paths of artifacts. Without the update, no artifact would be found after a move, and a
copy would write into the artifacts of the original.
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

#: Seconds to wait for another writer. After that, the call fails and is retried.
_BUSY_SECONDS: Final = 5.0

#: Tables and columns in which MLflow stores the paths of artifacts (MLflow 3.0 and later).
_PLACES: Final = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)

#: Finds experiments that searches have created, by the tag that searches set, while the storage was at
#: another path.
_MOVED: Final = """
    SELECT DISTINCT artifact_location FROM experiments
    JOIN experiment_tags ON experiment_tags.experiment_id = experiments.experiment_id
    WHERE experiment_tags.key = 'mlflow.experiment.primaryMetric.name'
    AND artifact_location LIKE 'file://%/' || ? AND artifact_location != ?
"""


def follow_artifacts(file: Path, artifacts: Path) -> None:
    """Change the artifact paths in the SQLite store ``file`` to the directory ``artifacts``.

    Only experiments that a search has created in a storage's own directory are changed. A store with other
    tables is left unchanged, and a warning is logged.

    Args:
        file: The SQLite file.
        artifacts: The directory of the artifacts, beside ``file``.

    Raises:
        CallError: If another process has locked the store. Without the change, artifacts would be written to
            the storage's former path.
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
            raise CallError(str(error), RetryPolicy.RETRY) from error
        _LOGGER.warning("the places of artifacts in %s could not be looked at: %s", file, error)
