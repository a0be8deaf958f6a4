"""The updates for MLflow: experiment, metrics, preloading of the exporter, and the closing message."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection

from tune_rescon.config import TrialState
from tune_rescon.metric_names import MAX_CLASSES_LOGGED, TEST_METRICS
from tune_rescon.report import report
from tune_rescon.spaces import load_space
from tune_rescon.tracking import Champion, MlflowWriter
from tune_rescon.tuning import RunOptions, sync_command
from tune_rescon.tuning.cost_model import CostModel, TrialCost
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.mlflow_callback import (
    MlflowCallback,
    closing_message,
    closing_metrics,
    destination,
    experiment_name,
    last_ms,
    record_experiment,
)
from tune_rescon.tuning.stopping.rule import Decision, Verdict
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import Proposal, TrialRecord

CONTINUE = Verdict(decision=Decision.CONTINUE)


def test_the_exporter_is_preloaded_once_all_started_and_one_has_a_network() -> None:
    space = load_space("digits", ["budget.trials=2"])
    storage = InMemoryStorage()
    record = StudyRecord.on_storage(
        storage, storage.create_new_study([StudyDirection.MAXIMIZE], "s"), metric="val_accuracy"
    )
    writer = mock.create_autospec(MlflowWriter, instance=True)
    writer.opened_runs.return_value = []
    preload = mock.Mock()
    callback = MlflowCallback(writer, record, CostModel(space=space, datasets={}), preload_exporter=preload)

    def start_trial() -> None:
        callback.on_trial_start(record.open(Proposal(params={}, distributions={}, sampler_state={})))

    def end_epoch(number: int, epoch: int, checkpoint: str | None) -> None:
        metrics = {"val_accuracy": 0.5}
        trial = record.report(number, epoch, metrics, CONTINUE, checkpoint=checkpoint)
        callback.on_epoch(trial, metrics, CONTINUE)

    start_trial()
    assert not writer.wake.called, "not while workers are still starting"
    end_epoch(0, 1, "best.ckpt")
    assert writer.wake.called
    start_trial()
    end_epoch(1, 1, None)
    assert not preload.called
    end_epoch(0, 2, "best.ckpt")
    end_epoch(1, 2, "best.ckpt")
    preload.assert_called_once_with()


def test_a_runs_parameters_show_no_password() -> None:
    writer = mock.create_autospec(MlflowWriter, instance=True)
    costs = CostModel(space=load_space("digits"), datasets={})
    callback = MlflowCallback(writer, mock.create_autospec(StudyRecord, instance=True), costs)
    trial = TrialRecord(
        number=0,
        state=TrialState.RUNNING,
        parameters={"init_from": "https://ann:s3cret@host/w.ckpt?sig=s3cret"},
        metric="val_accuracy",
        maximize=True,
        values=(),
    )
    assert callback.run_state(trial).params["init_from"] == "https://ann:***@host/w.ckpt?sig=***"


#: 3:00 of summer time, when clocks in Berlin are set back to 2:00, in seconds since 1970.
SUMMER_TIME_ENDS = 1792890000


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize("start", [-50, 10], ids=["before", "after"])
def test_a_run_in_the_repeated_hour_of_the_end_of_summer_time_has_its_own_times(start: int) -> None:
    """Optuna gives local times without their fold; the times of the epochs tell the two hours apart."""
    trial = TrialRecord(
        number=0,
        state=TrialState.STOPPED,
        parameters={},
        metric="val_accuracy",
        maximize=True,
        values=(0.5,),
        history={"epoch_seconds": (300.0,)},
        started=datetime.fromtimestamp(SUMMER_TIME_ENDS + 60 * start).replace(fold=0),
        times_ms=((SUMMER_TIME_ENDS + 60 * (start + 6)) * 1000,),
        ended=datetime.fromtimestamp(SUMMER_TIME_ENDS + 60 * 20).replace(fold=0),
    )
    if start < 0:
        later = (SUMMER_TIME_ENDS + 60 * 19) * 1000
        trial = replace(trial, values=(0.5, 0.5), times_ms=(*trial.times_ms, later))
    writer = mock.create_autospec(MlflowWriter, instance=True)
    costs = CostModel(space=load_space("digits"), datasets={})
    callback = MlflowCallback(writer, mock.create_autospec(StudyRecord, instance=True), costs)
    state = callback.run_state(trial)
    assert state.started_ms == (SUMMER_TIME_ENDS + 60 * start) * 1000
    assert state.ended_ms == last_ms(trial) == (SUMMER_TIME_ENDS + 60 * 20) * 1000


@pytest.mark.usefixtures("in_berlin")
def test_a_trial_that_starts_in_the_repeated_hour_has_its_own_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SearchFolder(storage=tmp_path, name="s")
    folder.create()
    record = StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    clock = mock.Mock(wraps=datetime)
    clock.now.side_effect = lambda zone: datetime.fromtimestamp(SUMMER_TIME_ENDS + 600, zone)
    patched = mock.Mock(datetime=clock, UTC=UTC)
    monkeypatch.setattr("tune_rescon.tuning.study_writer.datetime", patched)
    assert record.open(Proposal(params={}, distributions={})).start_seconds == SUMMER_TIME_ENDS + 600


@pytest.mark.parametrize("classes", [MAX_CLASSES_LOGGED, MAX_CLASSES_LOGGED + 1])
def test_final_metrics_include_class_accuracies_up_to_a_limit(classes: int) -> None:
    by_class = {f"test_accuracy/{number}": (0.5,) for number in range(classes)}
    trial = TrialRecord(
        number=0,
        state=TrialState.FINISHED,
        parameters={},
        metric="test_accuracy",
        maximize=True,
        values=(0.5,),
        history={**dict.fromkeys(TEST_METRICS, (0.5,)), **by_class},
    )
    metrics_at_end = closing_metrics(trial, TrialCost(params_m=1.0, gmacs=1.0), devices=1.0)
    assert set(TEST_METRICS) <= metrics_at_end.keys()
    class_metrics = [name for name in metrics_at_end if "/" in name]
    assert class_metrics == (list(by_class) if classes == MAX_CLASSES_LOGGED else [])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/pets", "pets"),
        ("/data/pets/", "pets"),
        ("/data/my pets.v2", "my pets.v2"),
        ("/data/pets.ZIP", "pets"),
        ("s3://bucket/pets.zip", "pets"),
        ("https://host/a/pets.zip?signature=x/y", "pets"),
        ("/", "folder"),
    ],
)
def test_an_experiment_is_named_after_the_folder(path: str, name: str) -> None:
    assert experiment_name(load_space("folder", [f"dataset.path={path}"])) == name
    assert experiment_name(load_space("digits")) == "digits"


def test_a_search_keeps_its_experiment(tmp_path: Path) -> None:
    folder = SearchFolder(storage=tmp_path, name="s")
    folder.create()
    record = StudyRecord.create(folder.study_url, "s", metric="val_accuracy", maximize=True, space="")
    space = load_space("folder", ["dataset.path=/data/pets"])
    assert destination(space, folder, None, None).experiment == "pets"
    assert destination(space, folder, None, record).experiment == "folder", (
        "the name that an earlier version chose"
    )
    record_experiment(record, space)
    moved = load_space("folder", ["dataset.path=/elsewhere/animals"])
    assert destination(moved, folder, None, record).experiment == "pets"
    assert destination(moved, folder, None, record).known_runs == ()
    for run_id in ("f00d", "bead", "cafe"):
        record.set_run_id(record.open(Proposal(params={}, distributions={})).number, run_id)
    assert destination(moved, folder, None, record).known_runs == ("cafe", "f00d")


OPTIONS = RunOptions(name="s", storage=Path("/a b/runs"), study_url="sqlite:////x y")


def test_the_closing_message_has_a_command_that_can_be_pasted() -> None:
    words = shlex.split(sync_command(OPTIONS))
    assert words[:3] == ["python", "-m", "tune_rescon.report"]
    read = report.make_context("report", words[3:]).params
    assert (read["name"], read["storage"], read["study"], read["sync"]) == (
        "s",
        "/a b/runs",
        "sqlite:////x y",
        True,
    )


def test_the_closing_message_names_the_registration_and_how_to_skip_it() -> None:
    message = closing_message(Champion(number=3, epoch=1, checkpoint="best.ckpt"), OPTIONS)
    assert "registering the model of trial_0003 in MLflow: about 10 s" in message
    assert message.endswith(f"Ctrl-C leaves MLflow for later: {sync_command(OPTIONS)}")
    assert closing_message(None, OPTIONS) == "Writing the report and completing MLflow"
