"""The versions of a search's space, and the version of trials in an older record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from tune_rescon.errors import SpaceError
from tune_rescon.spaces import Space, dump_space, load_space
from tune_rescon.tuning import Decision, SearchSampler, StudyRecord, Verdict
from tune_rescon.tuning.space_versions import SpaceVersions, read_versions, record_version
from tune_rescon.tuning.trial import Proposal, find_origin, make_origin

PARAMETERS = "parameters={depth: {type: categorical, choices: [56, 92]}}"


def space(*more: str) -> Space:
    return load_space("digits", ["initial=[]", "fixed={layout: cifar, width: 0.5}", PARAMETERS, *more])


def fail_if_read() -> Space:
    raise AssertionError("the file is not read where the study has the space")


def returning(result: Space) -> Callable[[], Space]:
    return lambda: result


def raise_broken() -> Space:
    raise SpaceError("space.yaml:3: is not YAML.")


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def record(study: optuna.Study) -> StudyRecord:
    return StudyRecord.on_storage(study._storage, study._study_id, metric="val_accuracy")


def fill(study: optuna.Study, space_of_trials: Space, *, old: bool = False) -> None:
    """Add two trials, recorded as in an earlier version if ``old``."""
    study_record, search = record(study), SearchSampler(space_of_trials)
    for _ in range(2):
        proposal = search.ask()
        assert proposal is not None
        origin = None if old else proposal.origin
        trial = study_record.open(
            Proposal(params=proposal.params, distributions=proposal.distributions, origin=origin)
        )
        search.on_trial_start(trial)
        study_record.report(trial.number, 1, {"val_accuracy": 0.5}, Verdict(decision=Decision.CONTINUE))


def test_a_new_search_replaces_the_space_of_a_driver_that_never_began(
    study: optuna.Study,
) -> None:
    study_record, first, changed = (
        record(study),
        space(),
        space("budget.trials=7", "parameters.depth.choices=[92]"),
    )
    record_version(study_record, None, first)
    record_version(study_record, None, changed)
    assert read_versions(record(study), fail_if_read).spaces == (changed,)


def test_every_version_is_kept_and_a_resume_without_a_change_makes_none(study: optuna.Study) -> None:
    first, second = space(), space("budget.trials=9")
    record_version(record(study), None, first)
    versions = read_versions(record(study), fail_if_read)
    assert record_version(record(study), versions, first).number == 1
    assert record_version(record(study), versions, second).number == 2
    stored_versions = read_versions(record(study), fail_if_read)
    assert (stored_versions.spaces, stored_versions.newest) == ((first, second), second)
    assert study.user_attrs["space"] == dump_space(second), "the shown space is the newest version"


def test_a_trial_keeps_its_configuration_when_the_space_changes(study: optuna.Study) -> None:
    record_version(record(study), None, space())
    fill(study, space())
    record_again = record(study)
    record_version(
        record_again, read_versions(record_again, fail_if_read), space("parameters.depth.choices=[128]")
    )
    for trial in record(study).trials():
        assert trial.origin is not None
        assert trial.origin.space == 1
        config = trial.config(space("fixed.width=1.0"))
        assert config is not None
        assert (config.depth, config.width) == (trial.parameters["depth"], 0.5)


def test_trials_of_two_versions_keep_their_configurations(study: optuna.Study) -> None:
    first, second = space(), space("fixed.width=1.0")
    versions = record_version(record(study), None, first)
    fill(study, first)
    record_version(record(study), versions, second)
    kept, search = record(study), SearchSampler(second, versions=SpaceVersions(spaces=(first, second)))
    proposal = search.ask()
    assert proposal is not None
    kept.open(proposal)
    reread = record(study)
    read_versions(reread, fail_if_read)
    origins = [trial.origin for trial in reread.trials()]
    assert [(o.space, o.config["width"]) for o in origins if o] == [(1, 0.5), (1, 0.5), (2, 1.0)]


@pytest.mark.parametrize(
    ("other", "alike"),
    [
        ("fixed.width=1.0", {1, 3}),
        ("parameters.depth.choices=[56]", {1, 3}),
        ("budget.trials=9", {1, 2, 3}),
    ],
)
def test_versions_that_draw_and_fix_the_same_are_alike(other: str, alike: set[int]) -> None:
    assert SpaceVersions(spaces=(space(), space(other), space())).like_newest == alike


def test_inactive_parameters_of_a_trial_are_recorded() -> None:
    drops = "parameters.drop_path={type: float, low: 0.0, high: 0.1, when: {parameter: depth, in: [92]}}"
    shallow = make_origin(space(drops), {"depth": 56}, version=2, number=7)
    assert (shallow.inactive, shallow.space, shallow.config["depth"]) == (("drop_path",), 2, 56)
    deep = make_origin(space(drops), {"depth": 92, "drop_path": 0.05}, version=1, number=7)
    assert (deep.inactive, deep.config["drop_path"]) == ((), 0.05)
    assert deep.seed == shallow.seed, "the proposal depends on the search and the number alone"
    assert find_origin(space(drops), {"depth": 128}, 7) is None


def test_the_first_resume_of_an_older_record_stores_its_configurations(study: optuna.Study) -> None:
    fill(study, space(), old=True)
    old = record(study)
    assert all(trial.origin is None for trial in old.trials())
    versions = read_versions(old, returning(space()))
    record_version(old, versions, space("budget.trials=9"))
    # From now on the content of the file does not matter.
    record_again = record(study)
    assert read_versions(record_again, fail_if_read).number == 2
    for trial in record_again.trials():
        assert trial.origin is not None
        assert trial.origin.space == 1
        assert trial.origin.config["width"] == 0.5


@pytest.mark.parametrize("on_file", [returning(space("parameters.depth.choices=[128]")), raise_broken])
def test_an_older_record_with_an_edited_file_uses_its_recorded_space(
    study: optuna.Study, on_file: Callable[[], Space]
) -> None:
    fill(study, space(), old=True)
    study.set_user_attr("space", dump_space(space()))
    reread = record(study)
    assert read_versions(reread, on_file).spaces == (space(),)
    assert all(trial.origin is not None for trial in reread.trials())


def test_unexplained_trials_of_an_older_record_have_no_configuration(
    study: optuna.Study,
) -> None:
    fill(study, space(), old=True)
    reread = record(study)
    edited = space("parameters.depth.choices=[128]")
    read_versions(reread, returning(edited))
    assert [trial.config(edited) for trial in reread.trials()] == [None, None]
    assert [trial.value for trial in reread.trials()] == [0.5, 0.5], "their results are kept"


def test_a_broken_space_file_is_reported(study: optuna.Study) -> None:
    fill(study, space(), old=True)
    with pytest.raises(SpaceError, match="is not YAML"):
        read_versions(record(study), raise_broken)


def test_the_record_keeps_metric_direction_and_counted_epoch(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    StudyRecord.create(url, "s", metric="val_loss", maximize=False, space="", at="last")
    reread = StudyRecord.load(url, "s", metric="val_accuracy")
    proposal = SearchSampler(space()).ask()
    assert proposal is not None
    trial = reread.open(proposal)
    assert (trial.metric, trial.at, trial.maximize) == ("val_loss", "last", False)
    (record_again,) = StudyRecord.load(url, "s", metric="val_accuracy").trials()
    assert record_again == reread.trial(0), "its configuration too"
