"""A real `mlflow server`, late, killed, frozen and shy: what it shows in the end is complete, and once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow_server import MlflowServer

from tune_rescon.tracking import Destination, MlflowWriter, RunView, SearchView, writer

pytestmark = pytest.mark.server

TRIALS, EPOCHS = 6, 5


def assert_complete(server: MlflowServer) -> None:
    """One parent, every trial once, every epoch once."""
    client = mlflow.MlflowClient(server.uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    assert len(runs) == TRIALS + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if "tune_rescon.trial" in run.data.tags]
    assert sorted(int(run.data.tags["tune_rescon.trial"]) for run in children) == list(range(TRIALS))
    for run in children:
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    made = MlflowServer(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def sender(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> MlflowWriter:
    """As a search has it, but it tries again sooner."""
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(writer, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(writer, "SETTLE", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    made = MlflowWriter(
        Destination(uri=server.uri, experiment="digits", search="s", metric="val_accuracy", maximize=True)
    )
    made.start()
    return made


def play(sender: MlflowWriter, halfway: Callable[[], None]) -> float:
    """A search's views, and what happens to the server half way; the seconds its longest call took."""
    slowest = 0.0

    def show(view: RunView | SearchView) -> None:
        nonlocal slowest
        began = time.perf_counter()
        sender.show(view)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.02)

    show(SearchView())
    for number in range(TRIALS):
        for epochs in range(EPOCHS + 1):
            show(trial(number, epochs))
            if (number, epochs) == (TRIALS // 2, EPOCHS // 2):
                halfway()
        show(trial(number, EPOCHS, "finished"))
    show(SearchView(state="finished"))
    return slowest


def trial(number: int, epochs: int, state: str = "running") -> RunView:
    values = tuple(epoch / 10 for epoch in range(1, epochs + 1))
    return RunView(
        number=number,
        state=state,
        params={"depth": "56"},
        history={"val_accuracy": values} if epochs else {},
        times_ms=tuple(1000 * epoch for epoch in range(1, epochs + 1)),
        started_ms=0,
        ended_ms=9000,
    )


def test_one_that_comes_up_late_gets_it_all(server: MlflowServer, sender: MlflowWriter) -> None:
    assert play(sender, lambda: None) < 0.05
    assert sender.waiting == 2 + TRIALS * (EPOCHS + 2)
    server.start()
    assert sender.close(60) == 0
    assert_complete(server)


def test_one_that_is_killed_amid_the_search_gets_it_all(server: MlflowServer, sender: MlflowWriter) -> None:
    server.start()

    def halfway() -> None:
        time.sleep(0.5)  # Some of it has been sent, some is under way.
        server.kill()

    assert play(sender, halfway) < 0.05
    assert sender.waiting > 0
    server.start()
    assert sender.close(60) == 0
    assert_complete(server)


def test_one_that_hangs_for_a_while_gets_it_all(server: MlflowServer, sender: MlflowWriter) -> None:
    server.start()
    assert play(sender, server.freeze) < 0.05
    time.sleep(3)
    assert sender.trouble
    server.thaw()
    assert sender.close(60) == 0
    assert sender.trouble == ""
    assert_complete(server)


def test_one_that_does_not_know_this_host_gets_it_all_once_it_does(
    server: MlflowServer, sender: MlflowWriter
) -> None:
    server.start("--allowed-hosts", "elsewhere.example", wait=False)
    play(sender, lambda: None)
    for _ in range(600):
        if "403" in sender.trouble:
            break
        time.sleep(0.1)
    assert "403" in sender.trouble
    server.kill()
    server.start()
    assert sender.close(60) == 0
    assert_complete(server)
