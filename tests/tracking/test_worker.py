"""The process that calls MLflow: its calls take effect, and it ends with the driver."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.waiting import LONGEST_WAIT, wait_until
from tune_rescon.tracking import (
    Destination,
    SearchRunState,
    TrialRunState,
    mlflow_writer,
    worker_client,
    writer,
)
from tune_rescon.tracking.worker_client import CallError, RetryPolicy, WorkerProcess

pytestmark = pytest.mark.server

Open = Callable[[str], WorkerProcess]


@pytest.fixture
def open_worker(same_priority: None) -> Iterator[Open]:
    del same_priority
    made: list[WorkerProcess] = []

    def make(uri: str) -> WorkerProcess:
        destination = Destination(
            uri=uri, experiment="digits", search="s", metric="val_accuracy", maximize=True
        )
        made.append(WorkerProcess(destination))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def worker_processes() -> list[psutil.Process]:
    """The MLflow worker processes of this process."""
    children = psutil.Process().children()
    return [child for child in children if "tune_rescon.tracking.worker" in child.cmdline()]


def test_the_call_of_a_killed_process_fails_and_the_next_succeeds(
    open_worker: Open, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = open_worker(store)
    with pytest.raises(CallError) as refused:
        # Its run is there all the same.
        worker.send(SearchRunState(id="1a", place="here", files=(tmp_path / "gone",)))
    assert refused.value.policy is RetryPolicy.SKIP
    shown = [worker.send(TrialRunState(number=number, started_ms=1)).run_id for number in range(2)]
    (process,) = worker_processes()
    process.kill()
    # What is sent next is a trial: nothing shows the search again until its next note.
    over = TrialRunState(number=0, state="finished", started_ms=1)
    with pytest.raises(CallError, match="died") as caught:
        worker.send(over)
    assert caught.value.policy is RetryPolicy.RETRY
    # The search has ended in between, so the next process has no trial to make room for.
    monkeypatch.setattr(worker_client, "NICENESS", 19)
    worker.flush()
    assert worker.send(over).run_id == shown[0]
    assert worker.send(TrialRunState(number=2)).run_id not in shown
    (process,) = worker_processes()
    assert process.nice() == psutil.Process().nice()
    client = mlflow.MlflowClient(store)
    assert client.get_run(shown[0]).info.status == "FINISHED"
    assert client.get_run(shown[1]).info.lifecycle_stage == "active"


@pytest.mark.usefixtures("same_priority")
def test_a_process_that_cannot_start_is_started_later(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started, refusals = worker_client._started, iter([OSError("no memory"), OSError("no memory")])

    def start() -> object:
        for error in refusals:
            raise error
        return started()

    monkeypatch.setattr(worker_client, "_started", start)
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.1)
    destination = Destination(uri=store, experiment="e", search="s", metric="m", maximize=True)
    with mlflow_writer(destination) as mlflow:
        mlflow.submit(SearchRunState(id="1a"))
        assert mlflow.close(200) == 0
    assert next(refusals, None) is None


def test_closing_ends_a_call_that_hangs(open_worker: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        worker = open_worker(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        failed: list[CallError] = []

        def show() -> None:
            try:
                worker.send(SearchRunState(id="1a"))
            except CallError as error:
                failed.append(error)

        calling = threading.Thread(target=show)
        calling.start()
        deaf.accept()[0].close()  # It has begun to ask.
        began = time.monotonic()
        worker.close()
        calling.join(60)
        assert not calling.is_alive()
        assert time.monotonic() - began < 60
        assert failed
        assert worker_processes() == []
        with pytest.raises(CallError):
            worker.send(SearchRunState(id="1a"))
        assert worker_processes() == [], "what is closed stays closed"


DRIVER = """
import sys, time
from tune_rescon.tracking import Destination, SearchRunState
from tune_rescon.tracking.worker_client import WorkerProcess

worker = WorkerProcess(Destination(uri=sys.argv[1], experiment="e", search="s", metric="m", maximize=True))
worker.flush()
worker.send(SearchRunState(id="1a"))
print("shown", flush=True)
time.sleep(600)
"""


def test_the_process_ends_with_its_driver(store: str) -> None:
    command = [sys.executable, "-c", DRIVER, store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"shown\n"
        (worker,) = psutil.Process(driver.pid).children()
        driver.kill()
    _, alive = psutil.wait_procs([worker], LONGEST_WAIT)
    assert not alive


@pytest.fixture(scope="module")
def shared_worker(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerProcess, str, int]]:
    """One process for the last tests, which do not end it, its store, and its niceness at first."""
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('kept') / 'mlflow.db')}"
    worker = WorkerProcess(
        Destination(uri=store, experiment="digits", search="s", metric="val_accuracy", maximize=True)
    )
    worker.start()
    # For a moment after its start a process has no command line.
    wait_until(lambda: worker_processes() != [])
    (process,) = worker_processes()
    began = process.nice()
    worker.flush()
    worker.send(SearchRunState(id="0a"))
    yield worker, store, began
    worker.close()


def test_states_are_stored_and_log_records_forwarded(
    shared_worker: tuple[WorkerProcess, str, int], caplog: pytest.LogCaptureFixture
) -> None:
    worker, store, _ = shared_worker
    caplog.set_level(logging.DEBUG)
    parent = worker.send(SearchRunState(id="1a", note="best so far: none")).run_id
    over = TrialRunState(number=0, state="finished", history={"val_loss": (0.5,)}, times_ms=(1,))
    child = worker.send(over).run_id
    run = mlflow.MlflowClient(store).get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.metrics == {"val_loss": 0.5}
    assert [record for record in caplog.records if record.name.startswith(("alembic", "mlflow"))] == []
    with pytest.raises(CallError, match="a name; no") as caught:
        worker.send(TrialRunState(number=1, params={"a name; no": "1"}))
    assert caught.value.policy is RetryPolicy.SKIP
    assert "MLflow refuses a call" in caplog.text
    assert "Traceback" in caplog.text, "which call it was"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a process's priority")
def test_flush_gives_the_process_the_drivers_priority(shared_worker: tuple[WorkerProcess, str, int]) -> None:
    _, _, began = shared_worker
    assert began == 19
    (process,) = worker_processes()
    assert process.nice() == psutil.Process().nice()
