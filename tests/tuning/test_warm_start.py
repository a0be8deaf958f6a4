"""The trials that a new search copies from an earlier one; a resume uses the same ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest

from tune_rescon.config import TrialState
from tune_rescon.errors import StorageError
from tune_rescon.spaces import Space, dump_space, load_space
from tune_rescon.tuning import (
    Decision,
    RunOptions,
    SearchFolder,
    SearchSampler,
    StudyRecord,
    TrialRecord,
    Verdict,
    sampler,
)
from tune_rescon.tuning.input_digests import record_images
from tune_rescon.tuning.warm_start import overlapping_trials, record_warm_start, warm_start_trials

# An earlier search is a database that is written trial by trial.
pytestmark = pytest.mark.timeout(20)


EARLIER = TrialRecord(
    number=3,
    state=TrialState.FINISHED,
    parameters={"learning_rate": 0.1},
    metric="val_accuracy",
    maximize=True,
    values=(0.2, 0.5, 0.4),
)


def test_a_trials_whole_curve_is_kept(record: StudyRecord) -> None:
    """The whole curve is needed to compare trials at a rung below their last epoch."""
    record_warm_start(record, [EARLIER])
    assert warm_start_trials(record) == [dataclasses.replace(EARLIER, at="best")]


@pytest.mark.parametrize(("at", "value"), [("best", 0.5), ("last", 0.4)])
def test_an_earlier_trial_has_its_value_at_the_epoch_that_counts_here(
    at: str, value: float, record: StudyRecord
) -> None:
    """Samplers other than TPE get this value together with those of this search's trials."""
    record.set_attribute("metric_at", at)
    record_warm_start(record, [EARLIER])
    (trial,) = warm_start_trials(record)
    assert trial.value == value


def test_only_the_last_value_of_an_earlier_versions_note_is_known(record: StudyRecord) -> None:
    note = {"number": 3, "state": "finished", "parameters": {}, "metric": "val_accuracy"}
    record.set_attribute("warm_start", [{**note, "epochs": 2, "value": 0.4, "cost": None}])
    (trial,) = warm_start_trials(record)
    assert math.isnan(trial.values[0])
    assert trial.values[1:] == (0.4,)


def test_a_search_without_warm_start_has_no_warm_start_trials(record: StudyRecord) -> None:
    assert warm_start_trials(record) == []


PARAMETERS = "parameters={width: {type: float, low: 0.25, high: 1.0}}"


def space(*more: str) -> Space:
    return load_space("digits", ["initial=[]", "fixed={layout: cifar}", PARAMETERS, *more])


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    return RunOptions(
        name="next", storage=tmp_path / "runs", cache_root=tmp_path / "cache", warm_start="base"
    )


def run_earlier_search(
    folder: SearchFolder,
    url: str,
    *states: TrialState,
    space_of_search: Space | None = None,
    cost: float | None = None,
    values: Sequence[float] = (),
) -> list[float]:
    """Run a search in ``folder`` whose study is at ``url``; return the widths of its trials.

    Each trial has one epoch, with the next of ``values`` or with 0.5.
    """
    space_of_search = space_of_search or space()
    metric = space_of_search.metric
    folder.create()
    folder.space_yaml.write_text(dump_space(space_of_search))
    study_record = StudyRecord.create(
        url,
        folder.name,
        metric=metric.name,
        maximize=metric.mode == "max",
        space=dump_space(space_of_search),
    )
    search, widths = SearchSampler(space_of_search), []
    for state, value in zip_longest(states, values, fillvalue=0.5):
        assert isinstance(state, TrialState)
        proposal = search.ask()
        assert proposal is not None
        trial = study_record.open(proposal)
        search.on_trial_start(trial)
        study_record.report(trial.number, 1, {metric.name: value}, Verdict(decision=Decision.CONTINUE))
        if state.is_final:
            study_record.close(trial.number, state, checkpoint=None, cost=cost)
        widths.append(proposal.params["width"])
    return widths


STATES = (TrialState.STOPPED, TrialState.RUNNING, TrialState.FINISHED, TrialState.OUT_OF_MEMORY)


def test_only_ended_trials_that_the_space_contains_are_used(options: RunOptions, progress: list[str]) -> None:
    folder = SearchFolder(storage=Path(str(options.storage)), name="base")
    widths = run_earlier_search(folder, folder.study_url, *STATES)
    used = overlapping_trials(space(), options, weights={}, digests={})
    assert [(trial.number, trial.state) for trial in used] == [
        (number, STATES[number]) for number in (0, 2, 3)
    ]
    assert [trial.parameters["width"] for trial in used] == [widths[number] for number in (0, 2, 3)]
    assert progress[0].startswith("used 3 of 3 trials of base")
    middle_width = sorted(widths[number] for number in (0, 2, 3))[1]
    narrower = space(f"parameters.width.high={middle_width}")
    used = overlapping_trials(narrower, options, weights={}, digests={})
    within_range = [widths[number] for number in (0, 2, 3) if widths[number] <= middle_width]
    assert [trial.parameters["width"] for trial in used] == within_range
    assert progress[1].startswith("used 2 of 3 trials of base")


def test_images_are_compared_by_digest_and_not_by_path(options: RunOptions, progress: list[str]) -> None:
    folder = SearchFolder(storage=Path(str(options.storage)), name="base")
    images = ("dataset.name=folder", "dataset.store_size=32")
    earlier, new = (space(*images, f"dataset.path=/{name}") for name in ("here", "there"))
    run_earlier_search(folder, folder.study_url, *STATES, space_of_search=earlier)
    assert overlapping_trials(new, options, weights={}, digests={"folder": "0123"}) == []
    assert "3 differ in dataset.path" in progress.pop()
    record_images(StudyRecord.load(folder.study_url, "base", metric="val_accuracy"), {"folder": "0123"})
    assert len(overlapping_trials(new, options, weights={}, digests={"folder": "0123"})) == 3
    assert progress == ["used 3 of 3 trials of base"]
    assert len(overlapping_trials(earlier, options, weights={}, digests={"folder": "4567"})) == 3
    assert "base had other images in folder: its values may be higher or lower" in progress[-1]


def test_earlier_trials_get_the_second_objective_of_this_search(
    options: RunOptions,
) -> None:
    """Optuna's samplers raise for a trial with another number of objectives."""
    folder = SearchFolder(storage=Path(str(options.storage)), name="base")
    run_earlier_search(folder, folder.study_url, *STATES, cost=7.0)
    two_objectives = space("metric.against=gmacs")
    used = overlapping_trials(
        two_objectives,
        options,
        weights={},
        digests={},
        cost=lambda trial, epochs: 100 * trial.number + epochs,
    )
    assert [trial.cost for trial in used] == [1, 201, 301]
    used = overlapping_trials(space(), options, weights={}, digests={})
    assert [trial.cost for trial in used] == [None] * 3


def test_the_most_informative_of_many_trials_are_used(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIEW_BEST", "VIEW_LATEST"):
        monkeypatch.setattr(sampler, name, 1)
    folder = SearchFolder(storage=Path(str(options.storage)), name="base")
    run_earlier_search(folder, folder.study_url, *[TrialState.STOPPED] * 4)
    assert [trial.number for trial in overlapping_trials(space(), options, weights={}, digests={})] == [0, 3]


def test_the_best_of_many_trials_are_the_best_in_the_direction_of_the_new_search(
    options: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VIEW_BEST", "VIEW_LATEST"):
        monkeypatch.setattr(sampler, name, 1)
    folder = SearchFolder(storage=Path(str(options.storage)), name="base")
    own_metric = ("metric.log=['math:fsum']", "metric.name=val_fsum")
    smaller, larger = (space(*own_metric, f"metric.mode={mode}") for mode in ("min", "max"))
    run_earlier_search(
        folder,
        folder.study_url,
        *[TrialState.STOPPED] * 4,
        space_of_search=smaller,
        values=(0.1, 0.9, 0.5, 0.5),
    )
    for own, best in ((smaller, 0), (larger, 1)):
        used = overlapping_trials(own, options, weights={}, digests={})
        assert [trial.number for trial in used] == [best, 3]


def test_a_search_in_a_renamed_folder_is_used(options: RunOptions) -> None:
    folder = SearchFolder(storage=Path(str(options.storage)), name="before")
    run_earlier_search(folder, folder.study_url, *STATES)
    folder.path.rename(folder.storage / "base")
    assert len(overlapping_trials(space(), options, weights={}, digests={})) == 3


def test_in_a_shared_database_the_search_of_the_given_name_is_used(
    options: RunOptions, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    for name, states in (("other", STATES), ("base", STATES[:1])):
        run_earlier_search(SearchFolder(storage=Path(str(options.storage)), name=name), url, *states)
    shared = dataclasses.replace(options, study_url=url)
    assert [trial.number for trial in overlapping_trials(space(), shared, weights={}, digests={})] == [0]


def test_in_a_shared_database_a_search_of_another_name_is_not_used(
    options: RunOptions, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    folder = SearchFolder(storage=Path(str(options.storage)), name="other")
    run_earlier_search(folder, url, *STATES)
    folder.path.rename(folder.storage / "base")
    with pytest.raises(StorageError, match="no study named 'base'"):
        overlapping_trials(space(), dataclasses.replace(options, study_url=url), weights={}, digests={})


def test_a_missing_search_is_refused_naming_the_flag(options: RunOptions) -> None:
    with pytest.raises(StorageError, match="--warm-start: no search named 'base'"):
        overlapping_trials(space(), options, weights={}, digests={})
