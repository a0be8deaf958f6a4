"""Writers and run syncs on a SQLite store, and a small search that they send.

The store is created once and copied, because its migrations take MLflow seconds.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from tests.mlflow_in_process import InProcessWorker
from tune_rescon.tracking import (
    Destination,
    MlflowWriter,
    SearchRunState,
    TrialRunState,
    worker_client,
    writer,
)
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.worker_client import Sink, WorkerProcess

#: Limit of a `submit` in the search's thread. MLflow's process waits longer: five seconds for a locked SQLite
#: file, ten for a server that does not answer.
MAX_SUBMIT_SECONDS = 4.0

#: The size of the small search.
TRIALS, EPOCHS = 6, 5


def destination(uri: str, search: str, artifacts: Path | None) -> Destination:
    return Destination(
        uri=uri,
        experiment="digits",
        search=search,
        metric="val_accuracy",
        maximize=True,
        artifacts=artifacts,
    )


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of a store that no other test uses."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


@pytest.fixture
def make_writer(store: str, tmp_path: Path) -> Callable[..., MlflowWriter]:
    """Creates and starts writers; each one is another run of the command.

    Their calls run in a thread and not in a process, so that a test can patch them.
    """

    def make(search: str = "s", uri: str = store) -> MlflowWriter:
        mlflow_writer = MlflowWriter(
            destination(uri, search, tmp_path / "artifacts"), open_worker=InProcessWorker
        )
        mlflow_writer.start()
        return mlflow_writer

    return make


@pytest.fixture
def make_sync(store: str, tmp_path: Path) -> Callable[[], MlflowRunSync]:
    """Creates run syncs without a thread; each one is another run of the command."""

    def make() -> MlflowRunSync:
        sync = MlflowRunSync(destination(store, "s", tmp_path / "artifacts"))
        sync.connect()
        return sync

    return make


@pytest.fixture
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's process gets this one's priority. With the lowest it takes minutes on a busy machine."""
    monkeypatch.setattr(worker_client, "NICENESS", os.getpriority(os.PRIO_PROCESS, 0))


@pytest.fixture
def make_fast_writer(
    tmp_path: Path, same_priority: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., MlflowWriter]]:
    """Creates and starts writers with short pauses between retries."""
    del same_priority
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(writer, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(writer, "DEBOUNCE_SECONDS", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    writers: list[MlflowWriter] = []

    def make(uri: str, open_worker: Callable[[Destination], Sink] = WorkerProcess) -> MlflowWriter:
        local = tmp_path / "artifacts" if uri.startswith("sqlite:") else None
        writers.append(MlflowWriter(destination(uri, "s", local), open_worker=open_worker))
        writers[-1].start()
        return writers[-1]

    yield make
    for open_writer in writers:
        open_writer.close(0)


@pytest.fixture
def send_search() -> Callable[[MlflowWriter, Callable[[], object]], int]:
    """Submits the states of a small search, calls a function half way, and returns the number of updates."""

    def send_search(writer: MlflowWriter, halfway: Callable[[], object]) -> int:
        seconds = []

        def submit(run_state: TrialRunState | SearchRunState) -> None:
            start = time.perf_counter()
            writer.submit(run_state)
            seconds.append(time.perf_counter() - start)
            time.sleep(0.02)

        submit(SearchRunState(id="1a"))
        for number in range(TRIALS):
            for epochs in range(EPOCHS + 1):
                submit(trial(number, epochs))
                if (number, epochs) == (TRIALS // 2, EPOCHS // 2):
                    halfway()
            submit(trial(number, EPOCHS, "finished"))
        submit(SearchRunState(id="1a", state="finished"))
        assert max(seconds) < MAX_SUBMIT_SECONDS
        return len(seconds)

    return send_search


def trial(number: int, epochs: int, state: str = "running") -> TrialRunState:
    values = tuple(epoch / 10 for epoch in range(1, epochs + 1))
    return TrialRunState(
        number=number,
        state=state,
        params={"depth": "56"},
        history={"val_accuracy": values} if epochs else {},
        times_ms=tuple(1000 * epoch for epoch in range(1, epochs + 1)),
        started_ms=0,
        ended_ms=9000,
    )


@pytest.fixture
def assert_complete() -> Callable[[str], None]:
    """Asserts that a store has one parent, each trial once and each epoch once."""

    def check(uri: str) -> None:
        client = mlflow.MlflowClient(uri)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(ids)
        assert len(runs) == TRIALS + 1
        assert {run.info.status for run in runs} == {"FINISHED"}
        children = [run for run in runs if "tune_rescon.trial" in run.data.tags]
        assert sorted(int(run.data.tags["tune_rescon.trial"]) for run in children) == list(range(TRIALS))
        for run in children:
            history = client.get_metric_history(run.info.run_id, "val_accuracy")
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))

    return check
