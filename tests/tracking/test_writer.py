"""The thread between the search and MLflow: it never waits, never raises, and counts unsent updates."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from requests import HTTPError, Response
from sqlalchemy.exc import OperationalError

from tests.waiting import LONGEST_WAIT, reserved_port, wait_until
from tune_rescon.tracking import Destination, MlflowWriter, SearchRunState, TrialRunState, writer
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.run_state import RunState
from tune_rescon.tracking.worker import is_final
from tune_rescon.tracking.worker_client import CallError, CallResult, RetryPolicy

MakeWriter = Callable[..., MlflowWriter]

TIMEOUT = 200.0


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(writer, "LAST_CALL", 0.3)
    # A value that the user has set is kept: one try per call.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    monkeypatch.setenv("MLFLOW_CONFIGURE_LOGGING", "false")


@pytest.fixture
def hanging_server() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed_port() -> Iterator[str]:
    with reserved_port() as port:
        yield f"http://127.0.0.1:{port}"


def epochs(count: int, *, number: int = 0) -> TrialRunState:
    return TrialRunState(
        number=number,
        params={"depth": "56"},
        history={"val_accuracy": (0.5, 0.6)[:count]},
        times_ms=(1, 2)[:count],
    )


def runs(store: str) -> list[Run]:
    client = mlflow.MlflowClient(store)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


@pytest.mark.parametrize("server", ["closed_port", "hanging_server"])
def test_a_dead_server_does_not_delay_the_search(
    server: str, make_writer: MakeWriter, request: pytest.FixtureRequest
) -> None:
    mlflow_writer = make_writer(uri=request.getfixturevalue(server))
    slowest = 0.0
    for number in range(100):
        start = time.perf_counter()
        mlflow_writer.submit(TrialRunState(number=number))
        slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 20
    start = time.perf_counter()
    assert mlflow_writer.close(0.1) == 100
    assert time.perf_counter() - start < 20
    assert mlflow_writer.opened_runs() == []
    assert mlflow_writer.pending_updates == 100


def test_updates_missed_by_a_dead_server_are_sent_later(
    make_writer: MakeWriter, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    log_batch = mlflow.MlflowClient.log_batch

    def fail_three_times(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) in (1, 2, 4):
            raise MlflowException("restarting", TEMPORARILY_UNAVAILABLE)
        log_batch(*args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail_three_times)
    # Delayed until the end, so that both epochs are sent together.
    monkeypatch.setattr(writer, "DEBOUNCE_SECONDS", 600.0)
    mlflow_writer = make_writer()
    mlflow_writer.submit(SearchRunState(id="1a", note="best so far: none"))
    mlflow_writer.submit(epochs(1))
    mlflow_writer.submit(epochs(2))
    assert mlflow_writer.close(TIMEOUT) == 0
    assert len(calls) == 5, "one for the search, one for both epochs, and three failed calls"
    (child,) = [run for run in runs(store) if "tune_rescon.trial" in run.data.tags]
    assert child.data.params == {"depth": "56"}, (
        "the call that created the run failed before its parameters were sent"
    )
    history = mlflow.MlflowClient(store).get_metric_history(child.info.run_id, "val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.6)]
    assert mlflow_writer.last_error == ""


def test_a_server_that_starts_late_gets_all_updates(
    make_writer: MakeWriter, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_started = threading.Event()
    connect = MlflowRunSync.connect

    def connect_when_started(sync: MlflowRunSync) -> None:
        if not server_started.is_set():
            raise ConnectionError("connection refused")
        connect(sync)

    monkeypatch.setattr(MlflowRunSync, "connect", connect_when_started)
    mlflow_writer = make_writer()
    mlflow_writer.submit(SearchRunState(id="1a"))
    mlflow_writer.submit(SearchRunState(id="1a", state="finished"))
    time.sleep(0.05)
    server_started.set()
    assert mlflow_writer.close(TIMEOUT) == 0
    (parent,) = runs(store)
    assert parent.info.status == "FINISHED"


def test_a_refused_call_is_left_out_and_the_next_are_sent(
    make_writer: MakeWriter, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_writer = make_writer()
    for run_state in (
        SearchRunState(id="1a"),
        TrialRunState(number=0, params={"a name; no": "1"}),
        epochs(1, number=1),
    ):
        mlflow_writer.submit(run_state)
    mlflow_writer.submit(SearchRunState(id="1a", state="finished"))
    assert mlflow_writer.close(TIMEOUT) == 1
    assert "MLflow refuses a call" in caplog.text
    parent, refused, child = sorted(runs(store), key=lambda run: run.data.tags.get("tune_rescon.trial", ""))
    assert parent.info.status == "FINISHED"
    assert refused.data.params == {}
    assert child.data.metrics == {"val_accuracy": 0.5}


def test_a_missing_file_leaves_no_run_open(make_writer: MakeWriter, store: str, tmp_path: Path) -> None:
    mlflow_writer = make_writer()
    mlflow_writer.submit(SearchRunState(id="1a", state="finished", files=(tmp_path / "gone.html",)))
    assert mlflow_writer.close(TIMEOUT) == 1
    (parent,) = runs(store)
    assert parent.info.status == "FINISHED"


def test_opened_runs_are_returned_once(make_writer: MakeWriter) -> None:
    mlflow_writer = make_writer()
    mlflow_writer.submit(SearchRunState(id="1a"))
    mlflow_writer.submit(TrialRunState(number=3))
    assert mlflow_writer.close(TIMEOUT) == 0
    assert [number for number, _ in mlflow_writer.opened_runs()] == [3]
    assert mlflow_writer.opened_runs() == []


def test_a_writer_closed_during_a_call_counts_its_update_as_unsent(
    make_writer: MakeWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(MlflowRunSync, "send", lambda *_: release.wait(LONGEST_WAIT))
    mlflow_writer = make_writer()
    for _ in range(3):
        mlflow_writer.submit(SearchRunState(id="1a"))
    assert mlflow_writer.close(0.3) == 3
    release.set()


def test_two_searches_may_create_the_same_experiment_at_once(make_writer: MakeWriter, store: str) -> None:
    writers = [make_writer("one"), make_writer("two")]
    for mlflow_writer, search_id in zip(writers, ("1a", "2b"), strict=True):
        mlflow_writer.submit(SearchRunState(id=search_id))
    assert [mlflow_writer.close(TIMEOUT) for mlflow_writer in writers] == [0, 0]
    assert {run.info.run_name for run in runs(store)} == {"one", "two"}


def test_an_experiment_created_meanwhile_is_used(
    make_writer: MakeWriter, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_experiment = mlflow.MlflowClient.get_experiment_by_name
    first_call = iter([True])

    def get_after_miss(client: mlflow.MlflowClient, name: str) -> object:
        return None if next(first_call, False) else get_experiment(client, name)

    experiment_id = mlflow.MlflowClient(store).create_experiment("digits")
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", get_after_miss)
    mlflow_writer = make_writer()
    mlflow_writer.submit(SearchRunState(id="1a"))
    assert mlflow_writer.close(TIMEOUT) == 0
    (parent,) = runs(store)
    assert parent.info.experiment_id == experiment_id


class SlowWorker:
    """A worker whose calls take ``seconds`` and raise ``error``."""

    def __init__(self, seconds: float = 0.0, error: CallError | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.calls: list[float] = []

    def start(self) -> None:
        """It is ready."""

    def send(self, _state: RunState) -> CallResult:
        self.calls.append(time.monotonic())
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return CallResult(run_id="a run")

    def flush(self) -> None:
        """It takes its time."""

    def close(self) -> None:
        """There is nothing to end."""


def writer_at(worker: SlowWorker, uri: str) -> MlflowWriter:
    destination = Destination(uri=uri, experiment="e", search="s", metric="m", maximize=True)
    mlflow_writer = MlflowWriter(destination, open_worker=lambda _: worker)
    mlflow_writer.start()
    return mlflow_writer


def test_the_writer_pauses_after_each_call_while_the_search_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SlowWorker(0.05)
    mlflow_writer = writer_at(worker, "http://there")
    for number in range(3):
        mlflow_writer.submit(TrialRunState(number=number, state="finished"))
    wait_until(lambda: len(worker.calls) >= 3)
    gaps = [second - first for first, second in itertools.pairwise(worker.calls)]
    assert min(gaps) > (1 + writer.REST) * worker.seconds
    monkeypatch.setattr(writer, "REST", 600 / worker.seconds)
    for number in range(10):
        mlflow_writer.submit(TrialRunState(number=number, state="finished"))
    assert mlflow_writer.close(60) == 0, "no pauses at the end"


def test_a_store_that_can_never_be_used_is_called_once() -> None:
    worker = SlowWorker(error=CallError("no such place", RetryPolicy.ABORT))
    mlflow_writer = writer_at(worker, "http://there")
    for number in range(3):
        mlflow_writer.submit(TrialRunState(number=number))
    assert mlflow_writer.close(60) == 3
    assert mlflow_writer.last_error == "no such place"
    assert len(worker.calls) == 1


def test_the_end_of_a_search_cuts_a_pause_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_PAUSE", 60.0)
    worker = SlowWorker(error=CallError("restarting", RetryPolicy.RETRY))
    mlflow_writer = writer_at(worker, "http://there")
    mlflow_writer.submit(SearchRunState(id="1a"))
    wait_until(lambda: mlflow_writer.last_error != "")
    worker.error = None
    assert mlflow_writer.close(60) == 0


def http_error(status: int) -> HTTPError:
    response = Response()
    response.status_code = status
    return HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (MlflowException("x", TEMPORARILY_UNAVAILABLE), False),
        (MlflowException("a dead connection is an internal error"), False),
        (MlflowException.invalid_parameter_value("x"), True),
        (ConnectionError(), False),
        (OSError(28, "No space left on device"), False),
        (OperationalError("select", None, Exception("database is locked")), False),
        (http_error(502), False),
        (http_error(429), False),
        (http_error(403), False),
        (http_error(413), True),
        (FileNotFoundError(), True),
        (PermissionError(), True),
        (KeyError(0), True),
    ],
    ids=repr,
)
def test_only_transient_errors_are_retried(error: Exception, final: bool) -> None:
    assert is_final(error) is final


class RecordingWorker:
    def __init__(self) -> None:
        self.started = threading.Event()
        self.sent: list[RunState] = []

    def start(self) -> None:
        self.started.set()

    def send(self, run_state: RunState) -> CallResult:
        self.sent.append(run_state)
        return CallResult(run_id="run")

    def flush(self) -> None:
        """Nothing is slow here."""

    def close(self) -> None:
        """Nothing is open."""


def delayed_writer(delay: float) -> tuple[MlflowWriter, RecordingWorker]:
    worker = RecordingWorker()
    destination = Destination(uri="sqlite:////none", experiment="e", search="s", metric="m", maximize=True)
    mlflow_writer = MlflowWriter(destination, open_worker=lambda _: worker)
    mlflow_writer.start(delay)
    mlflow_writer.submit(SearchRunState(id="1a"))
    return mlflow_writer, worker


def test_a_delayed_writer_starts_its_process_when_it_is_woken() -> None:
    mlflow_writer, worker = delayed_writer(60.0)
    assert not worker.started.wait(0.05)
    assert (mlflow_writer.pending_updates, worker.sent) == (0, [])
    mlflow_writer.wake()
    assert worker.started.wait(60)
    assert mlflow_writer.close(TIMEOUT) == 0
    assert len(worker.sent) == 1


def test_a_delayed_writer_starts_when_its_delay_ends() -> None:
    mlflow_writer, worker = delayed_writer(0.01)
    assert worker.started.wait(60)
    assert mlflow_writer.close(TIMEOUT) == 0


def test_a_delayed_writer_that_is_closed_sends_everything() -> None:
    mlflow_writer, worker = delayed_writer(60.0)
    assert mlflow_writer.close(TIMEOUT) == 0
    assert len(worker.sent) == 1
    assert not worker.started.is_set(), "sending starts the process"
