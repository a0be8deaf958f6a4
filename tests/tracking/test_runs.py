"""Events against a real store: what MLflow shows afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from tune_rescon.tracking import (
    MlflowWriter,
    RunEnded,
    RunMetrics,
    RunRecalled,
    RunStarted,
    SearchEnded,
    SearchStarted,
)
from tune_rescon.tracking.events import Event

Make = Callable[..., MlflowWriter]

PATIENCE = 30.0
PARAMS = {"depth": "56", "drop_path": "none"}


class Store:
    """What a person sees in MLflow."""

    def __init__(self, uri: str) -> None:
        self.client = mlflow.MlflowClient(uri)

    def runs(self) -> list[Run]:
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(ids))

    def parent(self) -> Run:
        (run,) = [run for run in self.runs() if "tune_rescon.trial" not in run.data.tags]
        return run

    def child(self, number: int) -> Run:
        (run,) = [run for run in self.runs() if run.data.tags.get("tune_rescon.trial") == str(number)]
        return run

    def series(self, number: int, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.child(number).info.run_id, metric)
        return sorted((point.step, point.value) for point in history)


@pytest.fixture
def seen(store: str) -> Store:
    return Store(store)


def send(writer: MlflowWriter, *events: Event) -> dict[int, str]:
    """Have all events sent; the runs that were opened."""
    for event in events:
        writer.put(event)
    assert writer.close(PATIENCE) == 0
    return dict(writer.opened_runs())


def epoch(step: int, value: float, *, number: int = 0) -> RunMetrics:
    return RunMetrics(number=number, step=step, metrics={"val_accuracy": value, "train_loss": 1 / step})


def ended(state: str, *, number: int = 0, error: str | None = None) -> RunEnded:
    return RunEnded(number=number, state=state, metrics={"best_epoch": 2.0}, step=2, error=error)


def test_children_hang_under_one_parent_and_carry_the_contracts_words(make_writer: Make, seen: Store) -> None:
    opened = send(
        make_writer(),
        SearchStarted(tags={"version.torch": "2.15"}),
        RunStarted(number=0, params=PARAMS),
        RunStarted(number=12, params=PARAMS),
        ended("finished"),
        ended("finished", number=12),
        SearchEnded(state="finished", metrics={"best_val_accuracy": 0.9}),
    )
    parent = seen.parent()
    assert parent.info.run_name == "s"
    assert parent.data.tags.items() >= {"tune_rescon.search": "s", "version.torch": "2.15"}.items()
    assert parent.data.metrics == {"best_val_accuracy": 0.9}
    assert set(opened) == {0, 12}
    for number, name in ((0, "trial_0000"), (12, "trial_0012")):
        child = seen.child(number)
        assert child.info.run_id == opened[number]
        assert child.info.run_name == name
        assert child.data.params == PARAMS
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["tune_rescon.search"] == "s"


def test_every_metric_is_there_once(make_writer: Make, seen: Store) -> None:
    epochs = [epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.625)]
    send(make_writer(), SearchStarted(), RunStarted(number=0, params={}), *epochs, ended("stopped"))
    assert seen.series(0, "val_accuracy") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert seen.series(0, "train_loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert seen.series(0, "best_epoch") == [(2, 2.0)]


def test_a_metric_that_is_not_a_number_is_shown_as_such(make_writer: Make, seen: Store) -> None:
    send(make_writer(), SearchStarted(), RunStarted(number=0, params={}), epoch(1, math.nan))
    ((step, value),) = seen.series(0, "val_accuracy")
    assert step == 1
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("finished", "FINISHED"),
        ("stopped", "FINISHED"),
        ("interrupted", "KILLED"),
        ("paused", "SCHEDULED"),
        ("diverged", "FAILED"),
        ("out_of_memory", "FAILED"),
        ("failed", "FAILED"),
    ],
)
def test_each_state_has_its_status(state: str, status: str, make_writer: Make, seen: Store) -> None:
    send(make_writer(), SearchStarted(), RunStarted(number=0, params={}), ended(state))
    child = seen.child(0)
    assert child.info.status == status
    assert child.data.tags["tune_rescon.state"] == state
    assert "tune_rescon.error" not in child.data.tags


def test_an_error_keeps_its_end(make_writer: Make, seen: Store) -> None:
    text = "x" * 9000 + "\nValueError: it was the last line"
    send(make_writer(), SearchStarted(), RunStarted(number=0, params={}), ended("failed", error=text))
    tag = seen.child(0).data.tags["tune_rescon.error"]
    assert text.endswith(tag)
    assert "last line" in tag


def test_files_are_the_parents_artifacts(make_writer: Make, seen: Store, tmp_path: Path) -> None:
    space, best = tmp_path / "space.yaml", tmp_path / "best.yaml"
    space.write_text("version: 1\n")
    best.write_text("trial: 0\n")
    send(
        make_writer(),
        SearchStarted(files=(str(space),)),
        SearchEnded(state="finished", files=(str(space), str(best))),
    )
    paths = {file.path for file in seen.client.list_artifacts(seen.parent().info.run_id)}
    assert paths == {"space.yaml", "best.yaml"}
    assert list((tmp_path / "artifacts").rglob("best.yaml"))


def test_the_experiment_names_its_primary_metric(make_writer: Make, seen: Store) -> None:
    send(make_writer(), SearchStarted())
    experiment = seen.client.get_experiment_by_name("digits")
    assert experiment is not None
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best_val_accuracy"
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


def test_a_promoted_trial_runs_again_in_its_run(make_writer: Make, seen: Store) -> None:
    started = RunStarted(number=0, params=PARAMS)
    waited = (started, epoch(1, 0.5), ended("paused"))
    send(make_writer(), SearchStarted(), *waited, started, epoch(2, 0.75), ended("stopped"))
    assert seen.child(0).info.status == "FINISHED"
    assert seen.series(0, "val_accuracy") == [(1, 0.5), (2, 0.75)]
    assert len(seen.runs()) == 2


HISTORY = (epoch(1, 0.5), epoch(2, 0.75), epoch(3, 0.625))
STARTED = RunStarted(number=0, params=PARAMS)
ENDED = ended("stopped")


@pytest.mark.parametrize("sent", range(len(HISTORY) + 3))
@pytest.mark.parametrize("over", [True, False])
def test_what_a_dead_driver_had_not_sent_is_sent_once(
    sent: int, over: bool, make_writer: Make, seen: Store
) -> None:
    before = (STARTED, *HISTORY, ENDED)[:sent]
    send(make_writer(), SearchStarted(), *before)
    recalled = RunRecalled(start=STARTED, epochs=HISTORY, end=ENDED if over else None)
    for _ in range(2):
        assert set(send(make_writer(), SearchStarted(), recalled)) == {0}
        assert seen.series(0, "val_accuracy") == [(1, 0.5), (2, 0.75), (3, 0.625)]
    assert len(seen.runs()) == 2
    if over:
        assert seen.child(0).info.status == "FINISHED"
        assert seen.series(0, "best_epoch") == [(2, 2.0)]
        assert seen.child(0).data.tags["tune_rescon.state"] == "stopped"


@pytest.mark.parametrize("knows_the_id", [True, False])
def test_a_resumed_search_opens_its_runs_again(knows_the_id: bool, make_writer: Make, seen: Store) -> None:
    started = RunStarted(number=0, params=PARAMS)
    opened = send(
        make_writer(),
        SearchStarted(),
        started,
        epoch(1, 0.5),
        ended("interrupted"),
        SearchEnded(state="interrupted"),
    )
    run_id = opened[0] if knows_the_id else None
    again = make_writer()
    for event in (SearchStarted(), RunStarted(number=0, params=PARAMS, run_id=run_id)):
        again.put(event)
    assert again.close(PATIENCE) == 0
    for run in (seen.parent(), seen.child(0)):
        assert run.info.status == "RUNNING"
        assert run.data.tags["tune_rescon.state"] == "running"

    ends = (epoch(2, 0.75), ended("finished"), SearchEnded(state="finished"))
    assert send(make_writer(), SearchStarted(), started, *ends) == opened
    assert seen.child(0).info.status == seen.parent().info.status == "FINISHED"
    assert seen.series(0, "val_accuracy") == [(1, 0.5), (2, 0.75)]
    assert len(seen.runs()) == 2


def test_a_run_this_server_does_not_have_is_made_anew(make_writer: Make, seen: Store) -> None:
    elsewhere = "0123456789abcdef0123456789abcdef"
    opened = send(make_writer(), SearchStarted(), RunStarted(number=0, params={}, run_id=elsewhere))
    assert opened[0] == seen.child(0).info.run_id != elsewhere


def test_a_run_that_was_deleted_is_made_anew(make_writer: Make, seen: Store) -> None:
    opened = send(make_writer(), SearchStarted(), RunStarted(number=0, params={}))
    seen.client.delete_run(opened[0])
    again = send(make_writer(), SearchStarted(), RunStarted(number=0, params={}, run_id=opened[0]))
    assert again[0] == seen.child(0).info.run_id != opened[0]


def test_the_parent_is_found_behind_more_children_than_a_page_holds(
    make_writer: Make, seen: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [RunStarted(number=number, params={}, time_ms=2000) for number in range(4)]
    send(make_writer(), SearchStarted(time_ms=1000), *many)
    search_runs = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "search_runs",
        lambda *args, **kwargs: search_runs(*args, **{**kwargs, "max_results": 2}),
    )
    send(make_writer(), SearchStarted())
    monkeypatch.undo()
    assert seen.parent().info.run_name == "s"


def test_searches_of_one_store_do_not_take_each_others_runs(make_writer: Make, seen: Store) -> None:
    one = send(make_writer("s"), SearchStarted(), RunStarted(number=0, params={}))
    two = send(make_writer("s.2"), SearchStarted(), RunStarted(number=0, params={}))
    assert one[0] != two[0]
    assert sorted(run.info.run_name for run in seen.runs()) == ["s", "s.2", "trial_0000", "trial_0000"]
