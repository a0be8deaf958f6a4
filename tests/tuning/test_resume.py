"""A resume: which parts of the space it may change, and whether the search has anything left to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection

from tests.tuning.conftest import MakeSearch
from tune_rescon.config import DatasetConfig, TrialState, field_names
from tune_rescon.errors import SpaceError
from tune_rescon.search import main
from tune_rescon.spaces import Space, dump_space, load_space
from tune_rescon.spaces.sections import (
    Budget,
    Constraints,
    Fidelity,
    Metric,
    Resources,
    Sampler,
    Scheduler,
    Section,
)
from tune_rescon.tuning import Decision, SearchSampler, SearchState, StudyRecord, TrialRecord, Verdict
from tune_rescon.tuning.resume import (
    FREE,
    FROZEN,
    change_problems,
    check_changes,
    cost_message,
    is_finished,
    space_changes,
    tracking_message,
    unfit_message,
    version_changes,
    waiting_message,
)
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.study_attributes import record_outcome, record_run
from tune_rescon.tuning.trial import TrialOrigin, make_origin

DOCUMENT = Path(__file__).parents[2] / "docs" / "howto" / "resume.md"

BASE = (
    "initial=[]",
    "budget.trials=6",
    "fidelity.max=6",
    "fixed={layout: cifar, width: 0.5}",
    (
        "parameters={depth: {type: categorical, choices: [56, 92]},"
        " learning_rate: {type: float, low: 0.01, high: 0.3, log: true}}"
    ),
)

#: For every key with a rule: a value other than the one in BASE.
OTHER_VALUES = {
    "name": "other",
    "description": "other words",
    "dataset.name": "cifar10",
    "dataset.val_fraction": "0.25",
    "dataset.label_noise": "0.1",
    "dataset.split_seed": "1",
    "dataset.limit": "100",
    "dataset.on_bad_image": "skip",
    "dataset.store_size": "64",
    "dataset.test_fraction": "0.2",
    "dataset.without_test": "val",
    "metric.log": "[val_macro_f1]",
    "constraints.params_m": "{max: 2}",
    "constraints.gmacs": "{max: 2}",
    "constraints.latency_ms": "{max: 20}",
    "metric.at": "last",
    "metric.against": "gmacs",
    "fidelity.min": "2",
    "fidelity.max": "2",
    "sampler.type": "random",
    "sampler.seed": "7",
    "sampler.n_startup_trials": "3",
    "sampler.repeats": "true",
    "scheduler.type": "none",
    "scheduler.reduction_factor": "4",
    "scheduler.variant": "promote",
    "scheduler.group_by": "depth",
    "budget.trials": "9",
    "budget.concurrent": "3",
    "budget.hours": "2",
    "resources_per_trial.workers": "2",
    "resources_per_trial.cpu": "2",
    "resources_per_trial.gpu": "1",
    "parameters.depth.choices": "[92]",
    "parameters.learning_rate.high": "0.2",
    "parameters.momentum": "{type: float, low: 0.8, high: 0.99}",
    "initial": "[{depth: 56, learning_rate: 0.1}]",
}

#: Keys that cannot be changed by one override alone. They have separate tests.
NOT_ALONE = {
    "dataset.path",
    "dataset.train",
    "dataset.val",
    "dataset.test",
    "dataset.ignore",
    "dataset.resize",
    "dataset.hold_out",
    "metric.name",
    "metric.mode",
    "fidelity.name",
    "budget.epochs",
    "resources_per_trial.accelerator",
}


def make_space(*more: str) -> Space:
    return load_space("digits", [*BASE, *more])


def make_trial(
    space: Space, number: int = 0, state: TrialState = TrialState.FINISHED, **sampled: Any
) -> TrialRecord:
    parameters = {"depth": 56, "learning_rate": 0.1} | sampled
    return TrialRecord(
        number=number,
        state=state,
        parameters=parameters,
        metric="val_accuracy",
        maximize=True,
        values=(0.5,),
        origin=make_origin(space, parameters, version=1, number=number),
    )


def problems(*more: str) -> list[str]:
    return change_problems(make_space(), make_space(*more), [make_trial(make_space())])


def is_free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE


@pytest.mark.parametrize(("key", "value"), OTHER_VALUES.items())
def test_each_key_is_free_or_frozen(key: str, value: str) -> None:
    reported = problems(f"{key}={value}")
    if is_free(key):
        assert reported == []
    else:
        (problem,) = reported
        assert problem.startswith(f"{key} is ")
        assert FROZEN[key.partition(".")[0]] in problem


def test_no_key_of_the_file_is_without_a_rule() -> None:
    sections: dict[str, type[Section]] = {
        "metric": Metric,
        "fidelity": Fidelity,
        "sampler": Sampler,
        "scheduler": Scheduler,
        "budget": Budget,
        "resources_per_trial": Resources,
        "constraints": Constraints,
    }
    keys = {f"{name}.{key}" for name, section in sections.items() for key in sorted(section.keys())}
    keys |= {f"dataset.{name}" for name in field_names(DatasetConfig)}
    assert keys - OTHER_VALUES.keys() == NOT_ALONE
    ruled = {key.partition(".")[0] for key in (*FREE, *FROZEN)} | {"fixed"}
    assert ruled == set(Space.keys())


def test_the_documentation_has_every_rule() -> None:
    text = DOCUMENT.read_text()
    for key in (*FREE, *FROZEN, "fixed"):
        assert f"`{key}`" in text or f"`{key}." in text, key


@pytest.mark.parametrize(
    "change",
    [
        ("metric={name: val_loss, mode: min}",),
        ("dataset={name: folder, path: elsewhere}",),
        ("metric={name: test_accuracy, mode: max}", "dataset.hold_out=false", "scheduler.type=none"),
    ],
)
def test_a_changed_metric_or_dataset_is_refused(change: tuple[str, ...]) -> None:
    rows = "initial=[{depth: 56, learning_rate: 0.1}, {depth: 92, learning_rate: 0.1}]"
    more = (rows, "budget.trials=2") if len(change) > 1 else ()
    assert problems(*change, *more)


def test_a_folder_of_images_may_have_moved() -> None:
    folder = ("dataset.name=folder", "dataset.path=here")
    old = make_space(*folder)
    assert change_problems(old, make_space(*folder, "dataset.path=there"), [make_trial(old)]) == []


def test_an_epoch_budget_may_be_added_with_its_scheduler() -> None:
    assert problems("scheduler={type: auto}", "budget.epochs=500") == []


def test_a_larger_number_of_epochs_is_refused() -> None:
    (problem,) = problems("fidelity.max=9")
    assert problem.startswith("fidelity.max is 6 and would become 9 (the learning-rate schedules")


def test_a_fixed_field_that_the_trials_contradict_is_refused() -> None:
    (problem,) = problems("fixed.width=1.0")
    assert problem.startswith("fixed.width would become 1.0, and trial 0 ran with 0.5")
    assert "move it to `parameters`" in problem


@pytest.mark.parametrize(
    "change",
    [
        ("fixed.momentum=0.9",),  # the default, written out
        ("parameters.width={type: float, low: 0.25, high: 1.0}", "fixed={layout: cifar}"),
        (
            "parameters={learning_rate: {type: float, low: 0.01, high: 0.3}}",
            "fixed={layout: cifar, depth: 92, width: 0.5}",
        ),
    ],
)
def test_fields_may_move_between_fixed_and_parameters(change: tuple[str, ...]) -> None:
    """A trial with another choice keeps its configuration, and the sampler skips it."""
    assert problems(*change) == []


def test_the_objective_function_is_frozen_and_others_may_be_added() -> None:
    """Functions of two modules may have the same name, which is that of the metric."""
    metric = "metric={{name: val_score, mode: min, log: [{}]}}"
    old = make_space(metric.format("before:score"))
    assert (
        change_problems(old, make_space(metric.format("before:score, other:count")), [make_trial(old)]) == []
    )
    (problem,) = change_problems(old, make_space(metric.format("after:score")), [make_trial(old)])
    assert problem.startswith("val_score is computed by before:score and would be computed by after:score")


def test_a_trial_of_an_earlier_version_ran_with_the_defaults_of_later_fields() -> None:
    space = make_space()
    recorded_trial = make_trial(space)
    assert recorded_trial.origin is not None
    recorded = recorded_trial.origin.to_dict()
    del recorded["config"]["patience"]
    earlier = dataclasses.replace(recorded_trial, origin=TrialOrigin.from_dict(recorded))
    assert earlier.setting("patience") == 0
    (problem,) = change_problems(space, make_space("fixed.patience=3"), [earlier])
    assert problem.startswith("fixed.patience would become 3, and trial 0 ran with 0")


def test_without_trials_a_fixed_field_is_free() -> None:
    assert change_problems(make_space(), make_space("fixed.width=1.0"), []) == []


def test_only_an_unfinished_trial_needs_its_configuration() -> None:
    space = make_space()
    known = dataclasses.replace(make_trial(space), origin=None)
    running = dataclasses.replace(known, number=3, state=TrialState.INTERRUPTED)
    assert change_problems(space, space, [known]) == []
    (problem,) = change_problems(space, space, [known, running])
    assert "no longer contains trial 3" in problem


def test_all_refused_changes_are_reported_together_with_a_hint() -> None:
    changed = make_space("fixed.width=1.0", "fidelity.max=3", "metric={name: val_loss, mode: min}")
    trials = [make_trial(make_space(), number) for number in range(4)]
    with pytest.raises(SpaceError) as caught:
        check_changes("base", make_space(), changed, trials)
    text = str(caught.value)
    assert "\n" not in text
    for word in ("--resume base", "fixed.width", "4 trials", "fidelity.max", "metric.name", "metric.mode"):
        assert word in text
    assert "--warm-start base" in text
    assert "docs/howto/resume.md" in text


def test_changes_are_reported_key_by_key() -> None:
    changes = space_changes(
        make_space(), make_space("budget.trials=9", "parameters.depth.choices=[92]", "fixed.nesterov=false")
    )
    assert "budget.trials: 6 -> 9" in changes
    assert "parameters.depth.choices: [56, 92] -> [92]" in changes
    assert len(changes) == 3
    (change,) = space_changes(
        make_space(), make_space("parameters.momentum={type: float, low: 0.8, high: 0.9}")
    )
    assert change == "parameters.momentum: - -> {type: float, low: 0.8, high: 0.9, log: false}"


def test_a_version_without_trials_is_part_of_the_history_too() -> None:
    versions = SpaceVersions(
        spaces=(make_space(), make_space("budget.trials=9"), make_space("budget.trials=12"))
    )
    later = dataclasses.replace(
        make_trial(make_space(), 6),
        origin=make_origin(make_space(), {"depth": 56, "learning_rate": 0.1}, version=2, number=6),
    )
    assert version_changes(versions, [make_trial(make_space()), later]) == (
        "version 2 (from trial 6): budget.trials: 6 -> 9",
        "version 3 (no trial yet): budget.trials: 9 -> 12",
    )
    assert version_changes(SpaceVersions(spaces=(make_space(),)), [later]) == ()


FINISHED_OVERRIDES = ("budget.trials=2", "fidelity.max=1", "sampler.type=random")


def small_space(*overrides: str) -> Space:
    return load_space("digits", [*FINISHED_OVERRIDES, *overrides])


def run_trials(record: StudyRecord, count: int) -> None:
    """Run and finish trials of one epoch."""
    sampler = SearchSampler(small_space())
    for number in range(count):
        proposal = sampler.ask()
        assert proposal is not None
        sampler.on_trial_start(record.open(proposal))
        record.report(number, 1, {"val_accuracy": 0.5}, Verdict(decision=Decision.STOP))
        record.close(number, TrialState.FINISHED, checkpoint=None)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a study with two finished trials."""
    url = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    record = StudyRecord.create(
        url, "s", metric="val_accuracy", maximize=True, space=dump_space(small_space())
    )
    run_trials(record, 2)
    return url


@pytest.mark.parametrize(
    ("outcome", "edits", "finished"),
    [
        (SearchState.FINISHED, [], True),
        (SearchState.FINISHED, ["resources_per_trial.cpu=2", "budget.concurrent=1"], True),
        (SearchState.FINISHED, ["budget.trials=1"], True),
        (SearchState.FINISHED, ["budget.trials=3"], False),
        (SearchState.INTERRUPTED, [], False),
        (SearchState.FAILED, [], False),
        (None, [], False),
    ],
)
def test_a_search_is_finished_if_it_completed_and_no_trial_remains(
    outcome: SearchState | None, edits: list[str], finished: bool, study: str
) -> None:
    record = StudyRecord.load(study, "s", metric="val_accuracy")
    if outcome is None:
        record.set_attribute("outcome", None)
    else:
        record_outcome(record, outcome, None)
    assert is_finished(record, SpaceVersions(spaces=(small_space(),)), small_space(*edits)) is finished


@pytest.mark.parametrize(
    ("edits", "finished"),
    [
        ([], True),
        (["budget.hours=1"], True),
        (["budget.hours=2"], False),
        (["budget.hours=1", "sampler.repeats=true"], False),
        (["parameters.learning_rate.high=0.2"], False),
    ],
)
def test_a_search_is_finished_if_its_hours_or_points_are_used_up(
    edits: list[str], finished: bool, study: str
) -> None:
    """Two of twenty trials ran, and the last run finished: the hours or the points were used up."""
    record = StudyRecord.load(study, "s", metric="val_accuracy")
    record_outcome(record, SearchState.FINISHED, None)
    original_space = small_space("budget.trials=20", "budget.hours=1")
    edited_space = small_space("budget.trials=20", "budget.hours=1", *edits)
    assert is_finished(record, SpaceVersions(spaces=(original_space,)), edited_space) is finished


@pytest.mark.parametrize(
    ("resources", "finished"),
    [("{cpu: 4, gpu: 0.5}", True), ("{gpu: 1}", False), ("{gpu: auto}", True)],
    ids=["the-same-gpus", "other-gpus", "not-chosen-yet"],
)
def test_a_search_is_not_finished_if_other_gpus_have_memory_for_its_points(
    resources: str, finished: bool
) -> None:
    storage = InMemoryStorage()
    record = StudyRecord.on_storage(
        storage, storage.create_new_study([StudyDirection.MAXIMIZE], "s"), metric="val_accuracy"
    )
    space = small_space("budget.trials=20", "resources_per_trial={cpu: 1, gpu: 0.5}")
    run_trials(record, 1)
    proposal = SearchSampler(space, existing_trials=record.trials()).ask()
    assert proposal is not None
    record.open(proposal)
    record.close(1, TrialState.OUT_OF_MEMORY, checkpoint=None, version=1)
    record_outcome(record, SearchState.FINISHED, None)
    changed = small_space("budget.trials=20", f"resources_per_trial={resources}")
    assert is_finished(record, SpaceVersions(spaces=(space,)), changed) is finished
    record.open(proposal)
    record.close(2, TrialState.OUT_OF_MEMORY, checkpoint=None, version=2)
    assert is_finished(record, SpaceVersions(spaces=(space, changed)), changed), "the point has run again"


def test_a_point_has_run_on_other_gpus_also_if_the_parameters_have_changed() -> None:
    """A trial that ran out of memory is the same point after a resume that searches one more field."""
    storage = InMemoryStorage()
    record = StudyRecord.on_storage(
        storage, storage.create_new_study([StudyDirection.MAXIMIZE], "s"), metric="val_accuracy"
    )
    resources = "resources_per_trial={{cpu: 1, gpu: {}}}"
    before = small_space("budget.trials=20", "drop_path=0.0", resources.format(0.5))
    now = small_space("budget.trials=20", resources.format(1))
    versions = SpaceVersions(spaces=(before, now))
    first = SearchSampler(before).ask()
    assert first is not None
    record.close(record.open(first).number, TrialState.OUT_OF_MEMORY, checkpoint=None, version=1)
    record_outcome(record, SearchState.FINISHED, None)
    assert not is_finished(record, versions, now)
    point = record.trial(0).parameters_in(now, first=before)
    assert point is not None
    assert point.keys() > record.trial(0).parameters.keys()
    again = SearchSampler(now, initial_points=[point], versions=versions).ask()
    assert again is not None
    record.close(record.open(again).number, TrialState.FINISHED, checkpoint=None)
    assert is_finished(record, versions, now)


@pytest.mark.parametrize(
    ("settings", "params", "elapsed", "finished", "advice"),
    [
        ([], {"depth": 92}, 0.0, False, "--resume s"),
        ([], {"depth": 57}, 0.0, True, None),
        (["budget.hours=1"], {"depth": 92}, 3599.0, False, "--resume s"),
        (["budget.hours=1"], {"depth": 92}, 3600.0, True, "--resume s, with more hours or epochs"),
        (
            ["scheduler={type: auto}", "budget.epochs=2"],
            {"depth": 92},
            0.0,
            True,
            "--resume s, with more hours or epochs",
        ),
        (["budget.trials=2"], {"depth": 92}, 0.0, True, "--resume s --trials 3"),
    ],
    ids=["waits", "outside-the-space", "hours-left", "hours-used", "epochs-used", "trials-used"],
)
def test_a_search_whose_points_are_used_up_still_runs_an_enqueued_trial(
    settings: list[str], params: dict[str, Any], elapsed: float, finished: bool, advice: str | None
) -> None:
    space, storage = small_space("budget.trials=20", *settings), InMemoryStorage()
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    record = StudyRecord.on_storage(storage, study_id, metric="val_accuracy")
    run_trials(record, 2)
    record_outcome(record, SearchState.FINISHED, None)
    optuna.load_study(study_name="s", storage=storage).enqueue_trial(params)
    record = StudyRecord.on_storage(storage, study_id, metric="val_accuracy")
    versions = SpaceVersions(spaces=(space,))
    assert is_finished(record, versions, space, elapsed_seconds=elapsed) is finished
    waiting = waiting_message(record, space, "s", elapsed_seconds=elapsed)
    assert waiting == (advice and f"Enqueued trials that have not run: trial_0002. To run them: {advice}")
    message = unfit_message(record, space)
    if params["depth"] == 92:
        assert message is None
    else:
        assert message is not None
        assert message.endswith("the space does not contain their values: trial_0002")


@pytest.mark.timeout(20)  # a database is read
@pytest.mark.parametrize("begin", [["--resume", "a"], ["--space", "att92", "--resume-or-start", "a"]])
def test_a_dry_run_refuses_what_the_resume_would_refuse(
    begin: list[str], make_search: MakeSearch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = make_search("a").storage
    same = ["--set", "initial=[]", "--set", "fidelity.max=3", "--set", "sampler.type=random"]
    command = [*begin, *same, "--storage", str(storage), "--dry-run", "--plain"]
    assert main([*command, "--set", "fidelity.max=9"]) == 2
    assert f"{begin[-2]} a: the settings of its trials must not change" in capsys.readouterr().err
    assert main([*command, "--trials", "9"]) == 0
    assert "a has 6 trials already; below is the whole search.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("before", "now", "places"),
    [
        (None, None, None),
        ("http://mlflow:5000", "http://mlflow:5000", None),
        ("http://ann:s3cret@mlflow:5000", "http://mlflow:5000", None),
        (
            "http://ann:s3cret@mlflow:5000",
            None,
            ("http://mlflow:5000", "the storage's own store", "give --tracking-uri http://mlflow:5000."),
        ),
        (
            None,
            "http://ann:s3cret@mlflow:5000",
            ("the storage's own store", "http://mlflow:5000", "leave out --tracking-uri."),
        ),
    ],
)
def test_another_mlflow_than_before_is_named(
    before: str | None, now: str | None, places: tuple[str, str, str] | None
) -> None:
    storage = InMemoryStorage()
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "s")
    record = StudyRecord.on_storage(storage, study_id, metric="val_accuracy")
    record_run(record, {}, before)
    assert tracking_message(record, now) is None, "no trial was logged"
    run_trials(record, 1)
    message = tracking_message(record, now)
    if places is None:
        assert message is None
    else:
        last, this, way = places
        assert message == (
            f"The last run was logged to MLflow at {last}. This one is logged to {this}, with all trials of"
            f" the search. To use the former one again, {way}"
        )


def test_costs_on_cores_and_on_gpus_are_not_compared_without_a_word() -> None:
    cores, gpu, more_cores = (
        make_space("metric.against=compute_hours", f"resources_per_trial={resources}")
        for resources in ("{cpu: 1, gpu: 0}", "{cpu: 1, gpu: 1}", "{cpu: 2, gpu: 0}")
    )
    assert cost_message(SpaceVersions(spaces=(cores, more_cores))) is None
    message = cost_message(SpaceVersions(spaces=(cores, gpu)))
    assert message is not None
    assert "core-hours of some trials with the GPU-hours of others" in message
    one_objective = gpu.model_copy(update={"metric": make_space().metric})
    assert cost_message(SpaceVersions(spaces=(cores, one_objective))) is None
