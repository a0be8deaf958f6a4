"""MLflow in the test's own process: no process to start, a store that is a copy, and no network exported.

MLflow's process imports its libraries for seconds, its migrations of an empty database take seconds, and so
does the export of a network. Each is tested once, in ``tests/tracking``; other tests need not repeat it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tune_rescon.config import trial_name
from tune_rescon.storage import sqlite_file
from tune_rescon.tracking import Destination, MlflowWriter, SearchRunState, TrialRunState
from tune_rescon.tracking.worker import MlflowWorker
from tune_rescon.tracking.worker_client import CallResult, Sink

__all__ = ["InProcessWorker", "NoMlflow", "mlflow_in_process", "no_network_exported"]


class InProcessWorker(MlflowWorker):
    """Makes the calls on the writer's thread: there is no process to start or to end."""

    def start(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class NoMlflow:
    """Accepts every state and drops it. A run has the id that the record has, or its trial's name."""

    def __init__(self, destination: Destination) -> None:
        del destination

    def start(self) -> None:
        pass

    def send(self, run_state: SearchRunState | TrialRunState) -> CallResult:
        if isinstance(run_state, SearchRunState):
            return CallResult(run_id="search")
        return CallResult(run_id=run_state.run_id or trial_name(run_state.number))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def mlflow_in_process(
    empty_store: Path | None = None, open_worker: Callable[[Destination], Sink] = InProcessWorker
) -> Iterator[None]:
    """Make the calls of searches, and of ``report --sync``, to MLflow in this process within the block.

    Args:
        empty_store: A database of which a new store is a copy. Without it, MLflow creates each store.
        open_worker: Makes the calls.
    """

    @contextmanager
    def make_writer(destination: Destination, *, delay: float = 0.0) -> Iterator[MlflowWriter]:
        del delay  # only for a worker process
        writer = MlflowWriter(destination, open_worker=open_worker)
        writer.start()
        try:
            yield writer
        finally:
            writer.close(0)

    def copy_store(uri: str) -> None:
        file = sqlite_file(uri)
        if empty_store is not None and file is not None and not file.exists():
            shutil.copyfile(empty_store, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_rescon.tuning.search.mlflow_writer", make_writer)
        patch.setattr("tune_rescon.tuning.mlflow_sync.mlflow_writer", make_writer)
        if empty_store is not None:
            patch.setattr("tune_rescon.tracking.worker.make_local_store", copy_store)
        yield


@contextmanager
def no_network_exported() -> Iterator[None]:
    """Register an empty model for every winner within the block."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "MLmodel").write_text("flavors: {}\n")

        @contextmanager
        def exported(_checkpoint: str) -> Iterator[Path]:
            yield Path(folder)

        patch.setattr("tune_rescon.tracking.registry.exported", exported)
        patch.setattr("tune_rescon.tracking.mlflow_runs.import_exporter", lambda: None)
        yield
