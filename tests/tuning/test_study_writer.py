"""Both study writers on a database: the fast one writes what Optuna's own calls write."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.tuning.sql_study_writer import SqlStudyWriter
from tune_rescon.tuning.study_writer import StudyWriter

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-3, 1.0, log=True),
    "width": FloatDistribution(0.5, 1.0, step=0.25),
    "depth": CategoricalDistribution([56, 92]),
    "mask": CategoricalDistribution(["local", None, True]),
    "batch": IntDistribution(16, 64, log=True),
}
PARAMS = {"learning_rate": 0.01, "width": 0.75, "depth": 92, "mask": None, "batch": 32}


@dataclasses.dataclass
class Case:
    writer: StudyWriter
    storage: optuna.storages.RDBStorage
    study_id: int


@pytest.fixture(scope="module")
def two_studies(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database whose studies have no trials. To copy it is faster than to create the tables."""
    path = tmp_path_factory.mktemp("studies") / "study.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    for name in ("other", "s"):
        storage.create_new_study([StudyDirection.MAXIMIZE], name)
    return path.read_bytes()


@pytest.fixture(params=[StudyWriter, SqlStudyWriter])
def case(request: pytest.FixtureRequest, two_studies: bytes, tmp_path: Path) -> Case:
    (tmp_path / "study.db").write_bytes(two_studies)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    study_id = storage.get_study_id_from_name("s")
    return Case(request.param(storage, study_id), storage, study_id)


def written(case: Case) -> FrozenTrial:
    """The only trial, read by Optuna."""
    (trial,) = optuna.load_study(study_name="s", storage=case.storage).trials
    return trial


OPEN_ARGUMENTS = create_trial(
    state=OptunaState.RUNNING,
    params=PARAMS,
    distributions=DISTRIBUTIONS,
    user_attrs={"state": "running"},
    system_attrs={"cma:generation": 1},
)


def start_search(case: Case) -> int:
    trial_id, _, _ = case.writer.open_trial(0, OPEN_ARGUMENTS)
    return trial_id


def test_a_trial_is_opened_with_its_params_and_attributes(case: Case) -> None:
    trial_id, number, started = case.writer.open_trial(0, OPEN_ARGUMENTS)
    trial = written(case)
    assert (trial._trial_id, trial.number, trial.state) == (trial_id, number, OptunaState.RUNNING)
    assert number == 0
    assert trial.params == PARAMS
    assert trial.distributions == DISTRIBUTIONS
    assert trial.user_attrs == {"state": "running"}
    assert trial.system_attrs == {"cma:generation": 1}
    assert trial.datetime_start == started


def test_a_trial_is_numbered_behind_those_of_other_programs(case: Case) -> None:
    study = optuna.load_study(study_name="s", storage=case.storage)
    study.ask()
    study.enqueue_trial({"depth": 56})
    _, number, _ = case.writer.open_trial(0, OPEN_ARGUMENTS)
    assert number == 2
    assert [trial.number for trial in case.writer.trials()] == [0, 1, 2]
    assert study.ask().number == 1, "`ask` takes the enqueued trial"
    assert study.ask().number == 3


def test_an_enqueued_trial_is_opened_unless_another_program_took_it(case: Case) -> None:
    study = optuna.load_study(study_name="s", storage=case.storage)
    for _ in range(2):
        study.enqueue_trial({"depth": 92}, user_attrs={"state": "mine", "why": "a guess"})
    waiting = [trial._trial_id for trial in case.writer.trials()]
    study.ask()

    def take(trial_id: int) -> tuple[int, int]:
        return case.writer.open_trial(2, OPEN_ARGUMENTS, waiting_id=trial_id)[:2]

    assert take(waiting[1]) == (waiting[1], 1)
    assert take(waiting[0])[1] == 2
    taken_trial = case.writer.trials()[1]
    assert (taken_trial.state, taken_trial.params, taken_trial.distributions) == (
        OptunaState.RUNNING,
        PARAMS,
        DISTRIBUTIONS,
    )
    assert taken_trial.user_attrs == {"state": "running", "why": "a guess"}
    assert taken_trial.system_attrs == {"fixed_params": {"depth": 92}, "cma:generation": 1}
    assert taken_trial.datetime_start is not None


@pytest.mark.parametrize("value", [0.5, math.inf, -math.inf, math.nan])
def test_epochs_are_intermediate_values(value: float, case: Case) -> None:
    trial_id = start_search(case)
    details = {"metrics": {"val_accuracy": value}}
    case.writer.add_epoch(trial_id, 1, value, key="epoch:1", details=details)
    trial = written(case)
    assert repr(trial.intermediate_values) == repr({1: value})
    assert repr(trial.system_attrs["epoch:1"]) == repr(details)


@pytest.mark.parametrize(
    ("state", "values"),
    [(OptunaState.COMPLETE, (0.5,)), (OptunaState.PRUNED, (0.25,)), (OptunaState.FAIL, None)],
)
def test_a_trial_is_closed_with_its_state_values_and_attributes(
    state: OptunaState, values: tuple[float, ...] | None, case: Case
) -> None:
    trial_id = start_search(case)
    ended = case.writer.close_trial(trial_id, state, values, {"state": "closed", "checkpoint": None})
    trial = written(case)
    assert (trial.state, trial.datetime_complete) == (state, ended)
    assert trial.values == (None if values is None else list(values))
    assert trial.user_attrs == {"state": "closed", "checkpoint": None}
    assert case.writer.trials() == [trial]


def test_an_attribute_is_replaced(case: Case) -> None:
    trial_id = start_search(case)
    user: dict[str, Any]
    for user in ({"state": "paused"}, {"state": "running", "notes": ["one"]}):
        case.writer.annotate(trial_id, user)
    assert written(case).user_attrs == {"state": "running", "notes": ["one"]}
