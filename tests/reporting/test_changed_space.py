"""A search whose space a resume changed: all reports show the configurations that the trials ran with."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from tune_rescon.errors import SpaceError
from tune_rescon.finals import top_configs
from tune_rescon.reporting.formats import csv_text, json_text, markdown_text, mlflow_note
from tune_rescon.reporting.page import render_page
from tune_rescon.reporting.summary import best_command, parameter_axes
from tune_rescon.search import main, search
from tune_rescon.spaces import Space, dump_space, load_space, trial_config
from tune_rescon.testing import SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import (
    RunOptions,
    SearchFolder,
    SearchLocation,
    StudyResult,
    parameter_importance,
    read_search,
)
from tune_rescon.tuning.warm_start import overlapping_trials

pytestmark = pytest.mark.timeout(20)  # SQLite on a busy disk

BASE = (
    "sampler.type=random",
    "scheduler.type=none",
    "fidelity.max=2",
    "initial=[{depth: 56, learning_rate: 0.1}]",
    "fixed={layout: cifar, width: 0.5}",
    (
        "parameters={depth: {type: categorical, choices: [56, 92]},"
        " learning_rate: {type: float, low: 0.05, high: 0.3}}"
    ),
)

#: The changes of a resume, and whether the changed space still contains the first trial, which is the best.
SPACE_CHANGES = {
    "a choice less": (("parameters.depth.choices=[92]", "initial=[]"), False),
    "narrower bounds": (("parameters.learning_rate.high=0.09", "initial=[]"), False),
    "another kind": (("parameters.learning_rate={type: categorical, choices: [0.1, 0.2]}",), True),
    "a parameter more": (
        ("parameters.width={type: categorical, choices: [0.5, 1.0]}", "fixed={layout: cifar}", "initial=[]"),
        True,
    ),
    "a parameter less": (
        (
            "parameters={learning_rate: {type: float, low: 0.05, high: 0.3}}",
            "fixed={layout: cifar, width: 0.5, depth: 92}",
            "initial=[]",
        ),
        False,
    ),
}


def space(*more: str, trials: int) -> Space:
    return load_space("digits", [*BASE, f"budget.trials={trials}", *more])


@pytest.fixture
def location(tmp_path: Path) -> SearchLocation:
    return SearchLocation(
        storage=tmp_path / "runs", cache_root=tmp_path / "cache", data_root=tmp_path / "data"
    )


@pytest.fixture
def started_search(tmp_path: Path) -> tuple[SimulatedSearch, Simulation, SearchFolder]:
    return _run_two_trials(tmp_path / "runs")


def _run_two_trials(storage: Path) -> tuple[SimulatedSearch, Simulation, SearchFolder]:
    """Run a search of two trials; the first one is better."""
    folder = SearchFolder(storage=storage, name="base")
    simulated = SimulatedSearch(space(trials=2), folder=folder)
    simulation = Simulation(lambda trial: SyntheticCurve(limit=0.9 - trial.number / 10), workers=1)
    simulation.drive(simulated.policy())
    return simulated, simulation, folder


StartedSearch = tuple[SimulatedSearch, Simulation, SearchFolder]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_two_trials(tmp_path_factory.mktemp("finished") / "runs")[2].path


@pytest.fixture
def copied_search(finished: Path, location: SearchLocation) -> SearchFolder:
    """A copy of the finished search: creating a database takes a second on a busy disk."""
    assert isinstance(location.storage, Path)
    shutil.copytree(finished, location.storage / "base")
    return SearchFolder(storage=location.storage, name="base")


def render_all_formats(result: StudyResult) -> str:
    """Render the report in every format."""
    values = {trial.number: trial.value for trial in result.trials}
    parameter_importance(result.space, {trial.number: trial for trial in result.trials}, values)
    parameter_axes(result)
    return "".join(
        [
            render_page(result, written=datetime(2026, 1, 1)),
            mlflow_note(result),
            markdown_text(result),
            csv_text([result]),
        ]
    )


@pytest.mark.parametrize("change", SPACE_CHANGES)
def test_a_changed_space_keeps_earlier_trials(
    started_search: StartedSearch, location: SearchLocation, change: str
) -> None:
    (simulated, simulation, folder), (settings, contained) = started_search, SPACE_CHANGES[change]
    before = read_search(location, "base")
    changed = space(*settings, trials=4)
    simulated.change(changed)
    simulation.drive(simulated.policy())
    after = read_search(location, "base")
    assert after.trials[:2] == before.trials
    assert {n: after.costs[n] for n in (0, 1)} == {n: before.costs[n] for n in (0, 1)}
    assert after.best_config == before.best_config
    assert (after.best_config["depth"], after.best_config["width"]) == (56, 0.5)
    assert top_configs(after, 1) == top_configs(before, 1)
    assert len(after.trials) == 4
    assert len(after.space_history) == 1
    assert after.space_history[0].startswith("version 2 (from trial 2): budget.trials: 2 -> 4")
    assert after.space_history[0] in json.loads(json_text(after))["space_history"]
    assert "Changes since the start" in render_all_formats(after)
    folder.write_trials(after.trials, changed.parameters)
    with folder.trials_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["depth"] for row in rows[:2]] == [str(trial.parameters["depth"]) for trial in before.trials]
    folder.space_yaml.write_text(dump_space(changed))
    assert _config_of_best_command(after) == (56, 0.5, 0.1)
    assert contained is not ("fixed=" in (best_command(after) or ""))


def _config_of_best_command(result: StudyResult) -> tuple[object, ...]:
    """Depth, width and learning rate of the trial that the report's command would train."""
    words = shlex.split(best_command(result) or "")
    params = search.make_context("search", words[3:]).params
    space = load_space(params["space_name"], [f"budget.trials={params['trials']}", *params["settings"]])
    config = trial_config(space, space.initial[0])
    return config.depth, config.width, config.learning_rate


@pytest.mark.parametrize("change", SPACE_CHANGES)
def test_a_space_edited_by_hand_keeps_earlier_trials(
    copied_search: SearchFolder, location: SearchLocation, change: str
) -> None:
    before = read_search(location, "base")
    copied_search.space_yaml.write_text(dump_space(space(*SPACE_CHANGES[change][0], trials=4)))
    assert read_search(location, "base") == before


@pytest.mark.parametrize("change", SPACE_CHANGES)
def test_an_older_study_with_edited_space_is_reported_and_warm_started(
    copied_search: SearchFolder, location: SearchLocation, change: str, progress: list[str]
) -> None:
    _downgrade_study(copied_search)
    copied_search.space_yaml.write_text(dump_space(space(*SPACE_CHANGES[change][0], trials=4)))
    result = read_search(location, "base")
    assert [trial.epochs for trial in result.trials] == [2, 2]
    render_all_formats(result)
    options = RunOptions(
        name="next", storage=location.storage, cache_root=location.cache_root, warm_start="base"
    )
    overlapping_trials(space(trials=4), options, weights={}, digests={})
    assert progress[0].startswith("used ")


def test_an_older_study_gives_the_same_report(copied_search: SearchFolder, location: SearchLocation) -> None:
    before = read_search(location, "base")
    _downgrade_study(copied_search)
    assert read_search(location, "base") == before


def test_warm_start_uses_the_configurations_that_trials_ran_with(
    started_search: StartedSearch, location: SearchLocation
) -> None:
    simulated, simulation, _ = started_search
    simulated.change(space(*SPACE_CHANGES["a parameter more"][0], trials=4))
    simulation.drive(simulated.policy())
    options = RunOptions(
        name="next", storage=location.storage, cache_root=location.cache_root, warm_start="base"
    )
    used = overlapping_trials(space(trials=4), options, weights={}, digests={})
    half_width = [t for t in read_search(location, "base").trials if t.setting("width") == 0.5]
    assert [trial.number for trial in used] == [trial.number for trial in half_width]


def test_a_contradicting_change_is_refused_without_writing(started_search: StartedSearch) -> None:
    simulated, _, folder = started_search
    before = (folder.path / "study.db").read_bytes()
    with pytest.raises(SpaceError, match=r"fixed\.width would become 1.0"):
        simulated.change(space("fixed={layout: cifar, width: 1.0}", trials=4))
    assert (folder.path / "study.db").read_bytes() == before


REFUSED_SETTINGS: dict[str, Callable[[], list[str]]] = {
    "fixed.width": lambda: ["fixed.width=1.0"],
    "metric.name": lambda: ["metric={name: val_loss, mode: min}"],
    "metric.against": lambda: ["metric.against=gmacs"],
    "fidelity.max": lambda: ["fidelity.max=1"],
    "dataset.split_seed": lambda: ["dataset.split_seed=3"],
}


@pytest.mark.parametrize("key", REFUSED_SETTINGS)
def test_resume_refuses_a_contradicting_change_without_writing(
    copied_search: SearchFolder, location: SearchLocation, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copied_search.path.rglob("*.yaml")}
    arguments = [
        "--resume",
        "base",
        "--storage",
        str(location.storage),
        "--data-root",
        str(location.data_root),
    ]
    for setting in REFUSED_SETTINGS[key]():
        arguments += ["--set", setting]
    assert main([*arguments, "--trials", "4"]) == 2
    message = capsys.readouterr().err
    assert key in message
    assert "--warm-start base" in message
    assert "Traceback" not in message
    assert {path: path.read_bytes() for path in copied_search.path.rglob("*.yaml")} == before
    assert len(read_search(location, "base").trials) == 2


def _downgrade_study(folder: SearchFolder) -> None:
    """Remove the configurations and the space versions, which earlier versions did not record."""
    with closing(sqlite3.connect(folder.path / "study.db")) as database, database:
        database.execute("DELETE FROM trial_system_attributes WHERE key = 'tune_rescon:origin'")
        database.execute("DELETE FROM study_user_attributes WHERE key LIKE 'space%' OR key LIKE 'metric%'")
