"""A trial that is resumed after a fault equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.training import killed_trials
from tests.training.conftest import ATTENTION_CONFIG
from tests.training.forked import run_forked
from tests.training.resuming import (
    BATCHES,
    EPOCHS,
    IMPROVING,
    Fault,
    ResumedTrial,
    assert_same_files,
    corrupt,
    empty,
    killed_after,
    metrics_of,
    preempted,
    truncate,
    without_timings,
)
from tune_rescon.config import TrialConfig
from tune_rescon.training import epochs_in_checkpoint

if TYPE_CHECKING:
    from tests.training.conftest import Train

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]  # one fixture runs all killed trials

LAST_DAMAGED, BOTH_DAMAGED, BEST_DAMAGED = (
    "the last checkpoint was damaged; resuming from epoch 1",
    "both checkpoints were damaged; starting over",
    "best.ckpt was damaged; the networks of the epochs before are lost",
)

#: Interruptions and damages of a trial whose process is not killed during an action.
FAULTS = {
    "killed after every epoch": Fault(
        stages=[killed_after(epoch) for epoch in (1, 2, 3)], epochs_in_folder=3
    ),
    "preempted six times": Fault(
        # The third one after an epoch's report, the fourth one while batch norm statistics are estimated.
        stages=[preempted(at=at) for at in (1, 1, 2, 2, 1, 2)],
        epochs_in_folder=2,
    ),
    "preempted, its checkpoint damaged": Fault(
        stages=[preempted(at=BATCHES + 2), truncate("last")], epochs_in_folder=1, messages=[LAST_DAMAGED]
    ),
    "preempted on a full disk": Fault(
        stages=[preempted(at=BATCHES), preempted(at=2, disk_full=True)], epochs_in_folder=1
    ),
    "the disk full for two epochs": Fault(stages=[killed_after(3, disk_full_after=1)], epochs_in_folder=1),
    "an older checkpoint empty": Fault(stages=[killed_after(2), empty("last.previous")], epochs_in_folder=2),
    "a checkpoint truncated": Fault(
        stages=[killed_after(2), truncate("last")], epochs_in_folder=1, messages=[LAST_DAMAGED]
    ),
    "a checkpoint corrupted": Fault(
        stages=[killed_after(2), corrupt("last")], epochs_in_folder=1, messages=[LAST_DAMAGED]
    ),
    "both checkpoints corrupted": Fault(
        stages=[killed_after(2), corrupt("last", "last.previous")],
        epochs_in_folder=0,
        messages=[BOTH_DAMAGED],
    ),
    "the best network corrupted": Fault(
        stages=[killed_after(2), corrupt("best")], epochs_in_folder=2, messages=[BEST_DAMAGED]
    ),
    "a checkpoint and the best network empty": Fault(
        stages=[killed_after(2), empty("last", "best")],
        epochs_in_folder=1,
        messages=[LAST_DAMAGED, BEST_DAMAGED],
    ),
    "all files truncated": Fault(
        stages=[killed_after(2), truncate("last", "last.previous", "best")],
        epochs_in_folder=0,
        messages=[BOTH_DAMAGED, BEST_DAMAGED],
    ),
}


@pytest.fixture(scope="module")
def uninterrupted(
    train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    """The folder of an uninterrupted trial, and its reported metrics."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, [metrics_of(report) for report in train(folder=folder, epochs=EPOCHS, **IMPROVING)]


#: Random image transforms and sampling that no other row has.
RANDOM_SETTINGS: dict[str, Any] = {
    "class_sampling": "balanced",
    "class_weights": "balanced",
    "crop_scale": 0.4,
    "rotation": 15.0,
    "color_jitter": 0.3,
    "augment": "augmix",
    "random_erasing": 0.5,
}

#: Rows that also run with background writes.
BACKGROUND_FAULTS = ("killed after every epoch", "preempted six times", "the disk full for two epochs")


@pytest.mark.parametrize(
    ("name", "background"),
    [*((name, False) for name in FAULTS), *((name, True) for name in BACKGROUND_FAULTS)],
)
def test_a_trial_resumed_after_a_fault_equals_an_uninterrupted_one(
    name: str,
    background: bool,
    train: Train,
    uninterrupted: tuple[Path, list[dict[str, float]]],
    limit_file_size: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    options = {**IMPROVING, "background_writes": background}
    fault, trial = FAULTS[name], ResumedTrial(train, tmp_path, limit_file_size, options)
    for stage in fault.stages:
        stage(trial)
    recorded = epochs_in_checkpoint(tmp_path)
    assert [metrics_of(report) for report in recorded] == uninterrupted[1][: fault.epochs_in_folder]
    best_was_damaged = BEST_DAMAGED in fault.messages
    assert all((report.best_checkpoint is None) is best_was_damaged for report in recorded)

    before, trial.messages = trial.reports, []
    trial.reports = []
    trial.run()
    assert trial.messages == list(fault.messages)
    assert [report.epoch for report in trial.reports] == list(range(fault.epochs_in_folder + 1, EPOCHS + 1))
    assert all(report.best_checkpoint == tmp_path / "best.ckpt" for report in trial.reports)
    for report in before + trial.reports:
        assert metrics_of(report) == uninterrupted[1][report.epoch - 1]
    assert_same_files(tmp_path, uninterrupted[0])


@pytest.mark.usefixtures("small_attention")
@pytest.mark.parametrize(
    ("settings", "options", "at"),
    [
        (RANDOM_SETTINGS, {}, 3),
        (ATTENTION_CONFIG.to_dict(), {}, 3),
        ({"optimizer": "lion", "layer_decay": 0.9, "schedule": "cosine_restarts", "cycles": 2}, {}, 3),
        ({"optimizer": "muon", "freeze_epochs": 1, "classifier_lr_mult": 4.0, "layer_decay": 0.9}, {}, 3),
        ({"freeze_epochs": 1, "optimizer": "adamw"}, {}, 6),
        ({"optimizer": "adamw"}, {}, 3),
        ({"optimizer": "muon"}, {}, 3),
        ({"optimizer": "rmsprop"}, {}, 3),
        # A finalist is evaluated once, after its last epoch.
        ({}, {"metric": "test_accuracy", "mode": "max"}, BATCHES + 2),
        ({"ema_decay": 0.0, "precise_bn_batches": 4}, {}, 3),
        ({}, {"metric": "test_accuracy", "mode": "max"}, 2),
    ],
)
def test_a_preempted_trial_with_other_settings_equals_an_uninterrupted_one(
    train: Train,
    small: TrialConfig,
    settings: dict[str, Any],
    options: dict[str, Any],
    at: int,
    limit_file_size: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    config = TrialConfig.from_dict(small.to_dict() | settings)
    common_options = {**IMPROVING, "epochs": 2, **options}
    reference, interrupted = (
        ResumedTrial(functools.partial(train, config), tmp_path / name, limit_file_size, common_options)
        for name in ("reference", "interrupted")
    )
    reference.run()
    preempted(at=at)(interrupted)
    interrupted.run()
    assert [metrics_of(report) for report in interrupted.reports] == [
        metrics_of(report) for report in reference.reports
    ]
    assert_same_files(interrupted.folder, reference.folder)


#: Actions of a trial between two reports. The process is killed before the last occurrence of each.
STEP_ACTIONS = ("training_step", "backward", "average", "statistics", "validation_step", "report")

#: Actions on files. The process is killed before every occurrence, or half-way through it.
FILE_ACTIONS = ("save", "torn save", "fsync", "replace")

#: By optimiser: the actions before which a trial is killed, and the seeds of trials killed at random moments.
#: A kill before an fsync leaves the same files as one before the following replacement, so that only nightly
#: rows have it. The files do not depend on the optimiser. With background writes the number of steps before
#: the report varies, so that only the actions of the writing thread are counted.
KILLS = {
    "sgd": ((*STEP_ACTIONS, "save", "torn save", "replace"), (0,)),
    "adamw": (("backward", "replace"), ()),
    "sgd, in the background": (("report", *FILE_ACTIONS), (0, 1)),
}


@dataclass(kw_only=True)
class KilledTrial:
    """A trial that ran in several processes: their exit statuses and their reports."""

    folder: Path
    statuses: list[int] = field(default_factory=list)
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def run_killed_trials(
    small: TrialConfig, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, KilledTrial]]:
    """Runs the trials of a key of ``KILLS`` once: the uninterrupted trial and the killed ones, by name."""
    return functools.cache(
        lambda name: _run_killed_trials(name, small, tmp_path_factory.mktemp("killed_trials"))
    )


def _run_killed_trials(name: str, small: TrialConfig, folder: Path) -> dict[str, KilledTrial]:
    """Run them with every feature on that holds state between steps or draws random numbers."""
    optimizer, _, background = name.partition(", ")
    config = dataclasses.replace(
        small,
        batch_size=16,
        optimizer=optimizer,
        learning_rate=0.05 if optimizer == "sgd" else 0.002,
        cutmix=0.5,
        augment="randaugment",
    )
    for state in ("mixup", "ema_decay", "warmup_epochs", "precise_bn_batches"):
        assert getattr(config, state) > 0
    assert config.gradient_clip > 0
    assert config.label_smoothing > 0
    actions, seeds = KILLS[name]
    job = killed_trials.Job(
        folder=str(folder),
        config=config.to_dict(),
        epochs=EPOCHS,
        actions=actions,
        writes=FILE_ACTIONS,
        background=bool(background),
        seeds=seeds,
    )
    process = run_forked(killed_trials.run, job)
    assert process.returncode == 0, process.stderr
    return _parse_events(folder, (json.loads(line) for line in process.stdout.splitlines()))


def _parse_events(folder: Path, lines: Iterable[list[Any]]) -> dict[str, KilledTrial]:
    trials: defaultdict[str, KilledTrial] = defaultdict(lambda: KilledTrial(folder=folder))
    for event, trial, *fields in lines:
        killed_trial = trials[trial]
        killed_trial.folder = folder / trial
        if event == "ended":
            killed_trial.statuses.append(fields[0])
        else:
            killed_trial.reports.append((fields[0], without_timings(fields[1])))
    return dict(trials)


#: Nightly: test_background_writes.py covers the thread's writes, and rows above cover AdamW's state.
NIGHTLY_KILLS = ("sgd, in the background", "adamw")


def _kill_rows(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the rows of a key of ``KILLS``."""
    marks = [pytest.mark.nightly] if name in NIGHTLY_KILLS else []
    return [pytest.param(name, value, marks=marks) for value in values]


@pytest.mark.parametrize(
    ("optimizer", "action"),
    [row for name, (actions, _) in KILLS.items() for row in _kill_rows(name, actions)],
)
def test_a_trial_killed_before_an_action_equals_an_uninterrupted_one(
    run_killed_trials: Callable[[str], dict[str, KilledTrial]], optimizer: str, action: str
) -> None:
    killed = {
        name: trial
        for name, trial in run_killed_trials(optimizer).items()
        if name.rpartition(" ")[0] == action
    }
    assert killed
    for name, trial in killed.items():
        assert trial.statuses == [killed_trials.KILLED_STATUS, 0], name
        _assert_equal(trial, run_killed_trials(optimizer)["uninterrupted"])


@pytest.mark.parametrize(
    ("name", "seed"), [row for name, (_, seeds) in KILLS.items() for row in _kill_rows(name, seeds)]
)
def test_a_trial_killed_repeatedly_at_random_equals_an_uninterrupted_one(
    run_killed_trials: Callable[[str], dict[str, KilledTrial]], name: str, seed: int
) -> None:
    trial = run_killed_trials(name)[f"SIGKILL {seed}"]
    assert len(trial.statuses) >= 2, "the trial was never killed"
    assert trial.statuses == [-signal.SIGKILL] * (len(trial.statuses) - 1) + [0]
    _assert_equal(trial, run_killed_trials(name)["uninterrupted"])


def _assert_equal(trial: KilledTrial, uninterrupted: KilledTrial) -> None:
    expected = dict(uninterrupted.reports)
    assert list(expected) == list(range(1, EPOCHS + 1))
    assert trial.reports == [(epoch, expected[epoch]) for epoch, _ in trial.reports]
    assert_same_files(trial.folder, uninterrupted.folder)
