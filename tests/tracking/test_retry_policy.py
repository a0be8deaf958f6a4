"""A store that can never accept a call: the error and a hint are reported at once, without waiting."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE, UNAUTHENTICATED
from sqlalchemy.exc import OperationalError

from tests.mlflow_in_process import InProcessWorker
from tests.waiting import wait_until
from tune_rescon.command import progress_shown
from tune_rescon.tracking import Destination, MlflowWriter, SearchRunState, TrialRunState
from tune_rescon.tracking.run_state import RunState
from tune_rescon.tracking.worker import fatal_error_hint
from tune_rescon.tracking.worker_client import CallResult

# MLflow is imported, and each call uses a database.
pytestmark = pytest.mark.timeout(60)

#: Seconds that a search waits for an unreachable server.
CLOSE_TIMEOUT = 200.0

StartWriter = Callable[[str], MlflowWriter]


@pytest.fixture
def start() -> StartWriter:
    def start(uri: str) -> MlflowWriter:
        destination = Destination(uri=uri, experiment="digits", search="s", metric="m", maximize=True)
        writer = MlflowWriter(destination, open_worker=InProcessWorker)
        writer.start()
        return writer

    return start


def send(writer: MlflowWriter) -> None:
    for run_state in (
        SearchRunState(id="1a"),
        TrialRunState(number=0, started_ms=1),
        TrialRunState(number=1, started_ms=1),
    ):
        writer.submit(run_state)


def assert_fails_at_once(writer: MlflowWriter, progress: list[str], message: str) -> None:
    start_time = time.monotonic()
    assert writer.close(CLOSE_TIMEOUT) > 0
    assert time.monotonic() - start_time < CLOSE_TIMEOUT / 2
    assert message in writer.reason
    assert [line for line in progress if message in line] == progress
    assert len(progress) == 1


def delete_experiment(uri: str, create: bool = True) -> str:
    client = mlflow.MlflowClient(uri)
    if create:
        client.create_experiment("digits")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def test_a_deleted_experiment_is_reported_and_accepts_all_updates_once_restored(
    store: str, start: StartWriter, progress: list[str]
) -> None:
    experiment_id = delete_experiment(store)
    writer = start(store)
    send(writer)
    assert_fails_at_once(writer, progress, f"mlflow experiments restore --experiment-id {experiment_id}")
    client = mlflow.MlflowClient(store)
    client.restore_experiment(experiment_id)
    second_writer = start(store)
    send(second_writer)
    assert second_writer.close(CLOSE_TIMEOUT) == 0
    assert len(client.search_runs([experiment_id])) == 3


def test_an_experiment_deleted_while_the_search_runs_is_reported(
    store: str, start: StartWriter, progress: list[str]
) -> None:
    writer = start(store)
    writer.submit(SearchRunState(id="1a"))
    writer.submit(TrialRunState(number=0))
    wait_until(lambda: writer.opened_runs() != [])
    delete_experiment(store, create=False)
    writer.submit(TrialRunState(number=1))
    writer.submit(TrialRunState(number=2))
    assert_fails_at_once(writer, progress, "the experiment 'digits' is deleted")


def test_a_database_of_another_mlflow_version_is_reported(
    store: str, tmp_path: Path, start: StartWriter, progress: list[str]
) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    writer = start(store)
    send(writer)
    assert_fails_at_once(writer, progress, f"run `mlflow db upgrade {store}`")
    assert "0123456789ab" in progress[0]


def test_a_file_that_is_not_a_database_is_reported(
    tmp_path: Path, start: StartWriter, progress: list[str]
) -> None:
    (tmp_path / "mlflow.db").write_text("shopping list\n" * 100)
    writer = start(f"sqlite:///{tmp_path / 'mlflow.db'}")
    send(writer)
    assert_fails_at_once(writer, progress, "Move it away")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MlflowException("who are you?", UNAUTHENTICATED), "MLFLOW_TRACKING_PASSWORD"),
        (OperationalError("x", None, Exception("attempt to write a readonly database")), "permissions"),
        (OperationalError("x", None, Exception("database is locked")), None),
        (OperationalError("x", None, Exception("database or disk is full")), None),
        (MlflowException("restarting", TEMPORARILY_UNAVAILABLE), None),
        (ConnectionError("nothing listens"), None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_only_an_error_that_the_user_must_fix_has_a_hint(error: Exception, message: str | None) -> None:
    hint = fatal_error_hint(error, "http://mlflow")
    assert hint is None if message is None else message in (hint or "")


def test_the_hint_shows_no_password() -> None:
    error = MlflowException("Detected out-of-date database schema (found version a, but expected b).")
    hint = fatal_error_hint(error, "postgresql://ann:s3cret@db/mlflow")
    assert hint is not None
    assert "s3cret" not in hint


def test_a_refused_update_is_reported_once_and_is_the_reason_at_the_end(
    store: str, start: StartWriter, progress: list[str]
) -> None:
    writer = start(store)
    writer.submit(SearchRunState(id="1a"))
    for number in range(3):
        writer.submit(TrialRunState(number=number, params={"a name; no": "1"}, state="finished"))
    assert writer.close(CLOSE_TIMEOUT) == 3
    (line,) = progress
    assert line.startswith("MLflow refuses an update of trial_0000, which is left out: ")
    assert "a name; no" in line
    assert "a name; no" in writer.reason


class RemarkingWorker:
    """A worker that returns a remark for every call."""

    def start(self) -> None:
        """It is ready."""

    def send(self, _state: RunState) -> CallResult:
        return CallResult(run_id="a run", remarks=("the champion has changed",))

    def flush(self) -> None:
        """It takes its time."""

    def close(self) -> None:
        """There is nothing to end."""


def test_remarks_are_reported_even_if_the_terminal_is_closed() -> None:
    printed: list[str] = []

    def print_and_fail(text: str) -> None:
        printed.append(text)
        raise BrokenPipeError

    destination = Destination(uri="http://there", experiment="e", search="s", metric="m", maximize=True)
    writer = MlflowWriter(destination, open_worker=lambda _: RemarkingWorker())
    with progress_shown(print_and_fail):
        writer.start()
        writer.submit(SearchRunState(id="1a"))
        writer.submit(TrialRunState(number=0, state="finished"))
        assert writer.close(CLOSE_TIMEOUT) == 0
    assert printed == ["the champion has changed"] * 2
