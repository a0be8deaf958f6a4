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
from contextlib import suppress
from multiprocessing import Pipe
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
from tune_rescon.tracking.worker_client import CallError, CallResult, RetryPolicy, WorkerProcess

pytestmark = pytest.mark.server

OpenWorker = Callable[[str], WorkerProcess]


@pytest.fixture
def open_worker(same_priority: None) -> Iterator[OpenWorker]:
    del same_priority
    workers: list[WorkerProcess] = []

    def make(uri: str) -> WorkerProcess:
        destination = Destination(
            uri=uri, experiment="digits", search="s", metric="val_accuracy", maximize=True
        )
        workers.append(WorkerProcess(destination))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def worker_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "tune_rescon.tracking.worker" in child.cmdline()]


def test_a_process_that_cannot_start_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of this test answers instead of MLflow's process, which takes seconds to start."""
    ours, theirs = Pipe()
    refusals = iter([OSError("no memory"), OSError("no memory")])

    def answer() -> None:
        with suppress(EOFError):  # the writer is closed
            theirs.recv()  # the destination
            while True:
                theirs.recv()
                theirs.send(CallResult(run_id="1a"))

    def fail_twice() -> object:
        for error in refusals:
            raise error
        threading.Thread(target=answer, daemon=True).start()
        return subprocess.Popen(["sleep", "600"]), ours

    monkeypatch.setattr(worker_client, "_started", fail_twice)
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.1)
    destination = Destination(uri="sqlite://", experiment="e", search="s", metric="m", maximize=True)
    with mlflow_writer(destination) as search_writer:
        search_writer.submit(SearchRunState(id="1a"))
        assert search_writer.close(200) == 0
    assert next(refusals, None) is None


def test_closing_ends_a_call_that_hangs(open_worker: OpenWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        worker = open_worker(f"http://127.0.0.1:{server.getsockname()[1]}")
        errors: list[CallError] = []

        def send() -> None:
            try:
                worker.send(SearchRunState(id="1a"))
            except CallError as error:
                errors.append(error)

        caller = threading.Thread(target=send)
        caller.start()
        server.accept()[0].close()  # the call has started
        start = time.monotonic()
        worker.close()
        caller.join(60)
        assert not caller.is_alive()
        assert time.monotonic() - start < 60
        assert errors
        assert worker_processes() == []
        with pytest.raises(CallError):
            worker.send(SearchRunState(id="1a"))
        assert worker_processes() == [], "a closed worker does not restart"


DRIVER = """
import sys, time
from tune_rescon.tracking import Destination, SearchRunState
from tune_rescon.tracking.worker_client import WorkerProcess

worker = WorkerProcess(Destination(uri=sys.argv[1], experiment="e", search="s", metric="m", maximize=True))
worker.flush()
worker.send(SearchRunState(id="1a"))
print("sent", flush=True)
time.sleep(600)
"""


def test_the_process_ends_with_its_driver(store: str) -> None:
    command = [sys.executable, "-c", DRIVER, store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"sent\n"
        (worker,) = psutil.Process(driver.pid).children()
        driver.kill()
    _, alive = psutil.wait_procs([worker], LONGEST_WAIT)
    assert not alive


@pytest.fixture(scope="module")
def shared_worker(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[WorkerProcess, str, int]]:
    """A worker process for the last tests, its store, and its niceness after the start."""
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('kept') / 'mlflow.db')}"
    worker = WorkerProcess(
        Destination(uri=store, experiment="digits", search="s", metric="val_accuracy", maximize=True)
    )
    worker.start()
    # A process has no command line for a moment after its start.
    wait_until(lambda: worker_processes() != [])
    (process,) = worker_processes()
    initial_niceness = process.nice()
    worker.flush()
    worker.send(SearchRunState(id="1a", place="here"))
    yield worker, store, initial_niceness
    worker.close()


def test_states_are_stored_and_log_records_forwarded(
    shared_worker: tuple[WorkerProcess, str, int], caplog: pytest.LogCaptureFixture
) -> None:
    worker, store, _ = shared_worker
    caplog.set_level(logging.DEBUG)
    parent = worker.send(SearchRunState(id="1a", place="here", note="best so far: none")).run_id
    finished = TrialRunState(number=0, state="finished", history={"val_loss": (0.5,)}, times_ms=(1,))
    child = worker.send(finished).run_id
    run = mlflow.MlflowClient(store).get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.metrics == {"val_loss": 0.5}
    assert [record for record in caplog.records if record.name.startswith(("alembic", "mlflow"))] == []
    with pytest.raises(CallError, match="a name; no") as error:
        worker.send(TrialRunState(number=1, params={"a name; no": "1"}))
    assert error.value.policy is RetryPolicy.SKIP
    assert "MLflow refuses a call" in caplog.text
    assert "Traceback" in caplog.text, "the traceback shows the refused call"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a process's priority")
def test_flush_gives_the_process_the_drivers_priority(shared_worker: tuple[WorkerProcess, str, int]) -> None:
    _, _, initial_niceness = shared_worker
    assert initial_niceness == 19
    (process,) = worker_processes()
    assert process.nice() == psutil.Process().nice()


def test_the_call_of_a_killed_process_fails_and_the_next_succeeds(
    shared_worker: tuple[WorkerProcess, str, int], tmp_path: Path
) -> None:
    """The last test of this process, which it kills."""
    worker, store, _ = shared_worker
    with pytest.raises(CallError) as refusal:
        worker.send(SearchRunState(id="1a", place="here", files=(tmp_path / "gone",)))
    assert refusal.value.policy is RetryPolicy.SKIP
    run_ids = [worker.send(TrialRunState(number=number, started_ms=1)).run_id for number in (10, 11)]
    (process,) = worker_processes()
    process.kill()
    # The next update is of a trial: the search is not sent again before its next change.
    finished = TrialRunState(number=10, state="finished", started_ms=1)
    with pytest.raises(CallError, match="died") as error:
        worker.send(finished)
    assert error.value.policy is RetryPolicy.RETRY
    assert worker.send(finished).run_id == run_ids[0]
    assert worker.send(TrialRunState(number=12)).run_id not in run_ids
    (process,) = worker_processes()
    assert process.nice() == psutil.Process().nice(), "the search has ended: it needs no low priority"
    client = mlflow.MlflowClient(store)
    assert client.get_run(run_ids[0]).info.status == "FINISHED"
    assert client.get_run(run_ids[1]).info.lifecycle_stage == "active"
