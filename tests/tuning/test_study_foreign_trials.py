"""A study with trials of other programs: they are ignored, and enqueued trials are run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState as OptunaState

from tune_rescon.errors import StorageError
from tune_rescon.reporting import json_text, markdown_text
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation, simulate
from tune_rescon.tuning import SearchFolder, SearchLocation, StudyRecord, list_searches, read_search

# Each search is a database that is written trial by trial.
pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(storage=tmp_path / "runs", name="a")


@pytest.fixture
def start_search(folder: SearchFolder) -> Callable[..., SimulatedSearch]:
    def start_search(*, sampler: str = "random", trials: int = 6) -> SimulatedSearch:
        settings = ["initial=[]", f"budget.trials={trials}", "fidelity.max=3", f"sampler.type={sampler}"]
        return SimulatedSearch(load_space("att92", settings), folder=folder)

    return start_search


def drive(search: SimulatedSearch, *, reports: int | None = None) -> None:
    landscape = LANDSCAPES["monotone"]
    Simulation(lambda trial: landscape.curve(trial.number, trial.parameters)).drive(
        search.policy(), reports=reports
    )


def foreign_program_study(folder: SearchFolder) -> optuna.Study:
    return optuna.load_study(study_name=folder.name, storage=folder.study_url)


def add_foreign(study: optuna.Study) -> tuple[int, int]:
    """Add a finished trial and a running trial of another program."""
    foreign_trial = study.ask()
    foreign_trial.report(7.0, 3)
    foreign_trial.set_user_attr("state", "great")
    study.tell(foreign_trial, 9.0)
    return foreign_trial.number, study.ask({"x": FloatDistribution(0, 1)}).number


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_foreign_trials_are_shown_as_foreign_and_ignored(
    sampler: str, start_search: Callable[..., SimulatedSearch], folder: SearchFolder
) -> None:
    search = start_search(sampler=sampler)
    drive(search, reports=5)
    foreign = add_foreign(foreign_program_study(folder))
    before = [foreign_program_study(folder).trials[number] for number in foreign]
    drive(search)
    result = read_search(SearchLocation(storage=folder.storage), "a")
    assert result.foreign == foreign
    assert len(result.trials) == 6, "a foreign trial takes none of the budget"
    assert not {trial.number for trial in result.trials} & set(foreign)
    numbers = [trial.number for trial in foreign_program_study(folder).trials]
    assert numbers == list(range(8)), "no number is used twice"
    assert [foreign_program_study(folder).trials[number] for number in foreign] == before
    assert "Foreign trials" in markdown_text(result)
    assert json.loads(json_text(result, []))["foreign"] == list(foreign)
    (listed,) = list_searches(SearchLocation(storage=folder.storage))
    assert (listed.ended, listed.problem) == (6, "")
    assert listed.best == max(trial.value for trial in result.trials if trial.epochs == 3)


def test_foreign_trials_that_come_while_a_search_runs_take_no_number_of_its_own(
    start_search: Callable[..., SimulatedSearch], folder: SearchFolder
) -> None:
    search = start_search(sampler="tpe")
    policy, study = search.policy(), foreign_program_study(folder)
    first = policy.next_trial()
    foreign = add_foreign(study)
    second = policy.next_trial()
    assert first is not None
    assert second is not None
    assert (first.number, foreign, second.number) == (0, (1, 2), 3)
    drive(search)
    assert len(search.trials()) == 6
    assert [trial.number for trial in search.trials()] == [0, *range(3, 8)]


def test_a_drawn_trial_shares_no_seed_with_the_enqueued_trial_that_took_its_number(
    start_search: Callable[..., SimulatedSearch], folder: SearchFolder
) -> None:
    search = start_search()
    policy = search.policy()
    policy.next_trial()
    foreign_program_study(folder).enqueue_trial({"depth": 92})
    drawn, enqueued = policy.next_trial(), policy.next_trial()
    assert drawn is not None
    assert enqueued is not None
    assert (drawn.number, enqueued.number) == (2, 1)
    seeds = {trial.origin.seed for trial in search.trials() if trial.origin}
    assert len(seeds) == len(search.trials()) == 3


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_an_enqueued_trial_is_run_next_with_the_values_it_was_given(
    sampler: str, start_search: Callable[..., SimulatedSearch], folder: SearchFolder
) -> None:
    search = start_search(sampler=sampler)
    drive(search, reports=2)
    study = foreign_program_study(folder)
    study.enqueue_trial({"depth": 92, "learning_rate": 0.0625})
    unfit_params: list[dict[str, Any]] = [
        {"learning_rate": 50.0},
        {"depth": "92 or so"},
        {"of_another_space": 1},
    ]
    for params in unfit_params:
        study.enqueue_trial(params)
    number = study.trials[-1 - len(unfit_params)].number
    drive(search)
    trials = {trial.number: trial for trial in search.trials()}
    assert trials[number].parameters["depth"] == 92
    assert trials[number].parameters["learning_rate"] == 0.0625
    assert trials[number].parameters.keys() >= {"image_size", "weight_decay"}, "the other trials are sampled"
    assert trials[number].state.is_final
    assert list(trials) == sorted(trials)
    assert len(trials) == 6
    waiting = [trial.number for trial in study.trials if trial.state is OptunaState.WAITING]
    assert waiting == list(range(number + 1, number + 1 + len(unfit_params))), "an unfit trial stays enqueued"
    assert read_search(SearchLocation(storage=folder.storage), "a").foreign == tuple(waiting)
    # A search with an enqueued trial can be resumed.
    assert len(search.policy()._record) == 6


def test_a_search_without_foreign_trials_does_not_mention_them(
    start_search: Callable[..., SimulatedSearch], folder: SearchFolder
) -> None:
    search = start_search(trials=2)
    simulate(search.policy(), lambda trial: LANDSCAPES["monotone"].curve(trial.number, trial.parameters))
    result = read_search(SearchLocation(storage=folder.storage), "a")
    assert result.foreign == ()
    assert "Foreign" not in markdown_text(result)


@pytest.mark.parametrize(
    ("schema", "writer", "remedy"),
    [("v3.0.0.d", "3.6.0", "optuna storage upgrade"), ("v9.0.0.a", "9.0.0", "Install optuna 9.0.0")],
    ids=["older", "newer"],
)
def test_the_tables_of_another_optuna_are_reported_in_a_paragraph(
    schema: str, writer: str, remedy: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    StudyRecord.create(url, "a", metric="val_accuracy", maximize=True, space="")
    with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (schema,))
        database.execute("UPDATE version_info SET library_version = ?", (writer,))
    with pytest.raises(StorageError) as error:
        StudyRecord.load(url, "a", metric="val_accuracy")
    message = str(error.value)
    assert f"those of optuna {writer}" in message
    assert f"optuna {optuna.__version__}, which is installed here" in message
    assert remedy in message
    assert "\n" not in message
