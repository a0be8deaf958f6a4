"""Whole searches through real Ray, with trials that learn nothing: what ends a trial, what comes after."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import optuna
import pytest
import ray
from optuna.trial import TrialState as OptunaState
from ray.air.execution import PlacementGroupResourceManager

from tune_rescon.config import TrialState
from tune_rescon.reporting import SearchPresentation
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import die_once, end_together, fail_second, learn_nothing
from tune_rescon.tuning import RunOptions, SearchFolder, StudyResult, run_search

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

GRID = (
    "parameters={depth: {type: categorical, choices: [56, 92]},"
    " mask: {type: categorical, choices: [encoder_decoder, local]}}"
)


def study(result: StudyResult) -> optuna.Study:
    return optuna.load_study(study_name=result.name, storage=f"sqlite:///{result.folder / 'study.db'}")


def test_a_trial_whose_process_is_killed_goes_on_in_another(small_space: Space, options: RunOptions) -> None:
    result = run_search(small_space, options, trainable=die_once)
    first = result.trials[0]
    assert first.values == tuple(sorted(first.values)), "the curve rises: no epoch is missing or there twice"
    assert first.epochs >= 3
    assert all(trial.state in (TrialState.FINISHED, TrialState.STOPPED) for trial in result.trials)


class BrokenPresentation(SearchPresentation):
    """Draws well until the end."""

    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        raise ValueError(f"no colour left for {result.name} in {folder.path}")


def test_a_fault_in_one_trial_and_one_in_the_pictures_are_said_and_the_search_goes_on(
    small_space: Space, options: RunOptions
) -> None:
    said: list[str] = []
    shown: list[tuple[StudyResult, list[str]]] = []
    result = run_search(
        small_space,
        options,
        trainable=fail_second,
        presentation=BrokenPresentation(),
        say=said.append,
        on_result=lambda result: shown.append((result, list(said))),
    )
    ((at_first, said_by_then),) = shown
    assert [trial.state for trial in at_first.trials] == [trial.state for trial in result.trials]
    assert at_first.best == result.best
    assert not any("report" in line for line in said_by_then), "the result comes before the report"
    states = [trial.state for trial in result.trials]
    assert states[1] is TrialState.FAILED
    assert len(states) == 6
    assert TrialState.FINISHED in states
    assert study(result).trials[1].state is OptunaState.FAIL
    assert result.state.value == "finished"
    assert any("could not be written" in line and "no colour left" in line for line in said)
    assert (result.folder / "best.yaml").is_file()
    assert "no colour left" in (result.folder / "search.log").read_text()


def test_a_grid_runs_every_combination_once(options: RunOptions) -> None:
    space = load_space(
        "digits",
        [
            "sampler.type=grid",
            "budget.trials=4",
            "initial=[]",
            GRID,
        ],
    )
    result = run_search(space, options, trainable=learn_nothing)
    run = {(trial.parameters["depth"], trial.parameters["mask"]) for trial in result.trials}
    assert run == {(depth, mask) for depth in (56, 92) for mask in ("encoder_decoder", "local")}


def test_hours_end_a_search_cleanly(options: RunOptions) -> None:
    space = load_space("digits", ["budget.trials=100000", "budget.hours=0.001"])
    result = run_search(space, options, trainable=learn_nothing)
    assert not result.interrupted
    assert 1 <= len(result.trials) < 100000
    assert all(trial.state.is_final for trial in result.trials)


SHORT = ("budget.trials=12", "fidelity.max=1", "fixed.warmup_epochs=0", "scheduler={type: none}")


def test_each_slot_keeps_its_process_also_where_trials_end_together(options: RunOptions) -> None:
    result = run_search(load_space("digits", SHORT), options, trainable=end_together)
    processes = {note for trial in result.trials for note in trial.notes}
    assert len(result.trials) == 12
    assert len(processes) == 2, processes


def test_no_process_is_asked_for_and_then_not_used(options: RunOptions) -> None:
    places, ask = PlacementGroupResourceManager, PlacementGroupResourceManager.request_resources
    with mock.patch.object(places, "request_resources", autospec=True, side_effect=ask) as asked:
        # Some end while the second slot's process starts.
        result = run_search(load_space("digits", SHORT), options, trainable=learn_nothing)
    assert len(result.trials) == 12
    assert asked.call_count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells what a process was started with")
def test_a_trial_process_has_one_heap_from_its_first_moment_on() -> None:
    (began_with,) = ray.get([ray.remote(_first_environment).remote()])
    assert b"MALLOC_ARENA_MAX=1" in began_with, "glibc reads it once, before anything else"


def _first_environment() -> list[bytes]:
    return Path("/proc/self/environ").read_bytes().split(b"\0")
