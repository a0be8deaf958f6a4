"""What the process that ends an idle cluster does on its head: looks at it, and ends what runs there."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from tune_rescon.clusters.commands import HEAD_TIMEOUT, ray_stop, run
from tune_rescon.clusters.head import running_jobs
from tune_rescon.clusters.idle import Head, Look
from tune_rescon.clusters.machines import open_machines
from tune_rescon.clusters.mlflow_service import MlflowSettings, end_mlflow, mlflow_command
from tune_rescon.errors import ClusterError
from tune_rescon.storage import RemoteFolder, StorageUrl, parse_storage

__all__ = ["beat_age", "head_actions", "look_at_head"]

#: The folder of the head's MLflow, as the shipped files start it.
MLFLOW_FOLDER: Final = Path("~/.tune_rescon/mlflow")

#: Ray reaches a head at this port only.
_SSH_PORT: Final = 22

#: Ray's process without which no job runs.
GCS: Final = "gcs_server"

_log: Final = logging.getLogger(__name__)


def head_actions() -> Head:
    """Return what can be done on this head. Nothing is asked or opened yet."""
    mlflow = _Mlflow(MLFLOW_FOLDER.expanduser())
    return Head(
        look=lambda: look_at_head(mlflow.folder),
        beat_age=lambda: beat_age(os.environ.get("TUNE_RESCON_STORAGE", "")),
        end_mlflow=mlflow.end,
        start_mlflow=mlflow.start,
        stop_ray=_stop_ray,
        end_machines=lambda: open_machines().end(),
    )


def look_at_head(mlflow: Path) -> Look:
    """Return what uses the cluster now; ``mlflow`` is the folder of the head's MLflow.

    A Ray that does not answer counts as use, because its jobs may run. A Ray that has ended runs no job.
    """
    try:
        uses = running_jobs()
    except ClusterError as error:
        uses = [f"a Ray that does not answer: {error}"] if _ray_runs() else []
    return Look(uses=tuple(uses), sessions=_sessions(), unwritten=_unwritten(mlflow))


def beat_age(storage: str) -> float:
    """Return the seconds since the last heartbeat of any search at a URL; infinite without one.

    Args:
        storage: the storage of the searches. A folder of this machine is not asked.

    Raises:
        OSError: the storage cannot be read.
    """
    place = parse_storage(storage) if storage else None
    if not isinstance(place, StorageUrl):
        return math.inf
    searches = RemoteFolder.connect(place)
    beats = []
    for name in searches.folders_with("space.yaml"):
        lease = searches.folder(f"{name}/lease")
        if (names := lease.names()) and (beat := lease.modified(names[-1])) is not None:
            beats.append(beat)
    return time.time() - max(beats) if beats else math.inf


def _unwritten(mlflow: Path) -> float:
    """Return the seconds since MLflow's database was last written; infinite without one."""
    database = MlflowSettings(folder=mlflow).sqlite
    times = []
    for path in (database, database.with_name(f"{database.name}-wal")):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times) if times else math.inf


def _ray_runs() -> bool:
    return any(process.info["name"] == GCS for process in psutil.process_iter(["name"]))


def _sessions() -> frozenset[str]:
    """Return the connections to this machine's ssh, each by the other end's address and port."""
    return frozenset(
        f"{one.raddr.ip}:{one.raddr.port}"
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_ESTABLISHED and one.laddr and one.raddr and one.laddr.port == _SSH_PORT
    )


def _stop_ray() -> None:
    try:
        done = run(ray_stop(), capture=True, timeout=HEAD_TIMEOUT)
    except ClusterError as error:
        _log.error("Ray was not stopped: %s", error)
    else:
        _log.info("Ray was stopped: %s", done.last_words)


class _Mlflow:
    """The head's MLflow, which is ended, and started again by the same command if the cluster stays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._command: list[str] = []

    def end(self) -> None:
        # If it has ended by itself since its last start, the earlier command starts it again.
        self._command = mlflow_command(self.folder) or self._command
        end_mlflow(self.folder)

    def start(self) -> None:
        if not self._command:
            return
        with (Path.home() / "mlflow.log").open("ab") as lines:
            subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=lines,
                stderr=lines,
                start_new_session=True,
            )
