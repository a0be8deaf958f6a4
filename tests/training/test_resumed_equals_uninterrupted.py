"""Whatever ends a trial early, and whatever happens to its files: resumed, it equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.training.mortal import STRUCK
from tests.training.resuming import (
    BATCHES,
    EPOCHS,
    STEADY,
    Fault,
    Lives,
    assert_same_files,
    cut_off,
    empty,
    killed_after,
    metrics_of,
    preempted,
    scratch,
    timeless,
)
from tune_rescon.config import TrialConfig
from tune_rescon.training import epochs_in_checkpoint

if TYPE_CHECKING:
    from tests.training.conftest import Run

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]  # the killed trials are lived in one fixture

LAST, BOTH, BEST = (
    "the last checkpoint was damaged; resuming from epoch 1",
    "both checkpoints were damaged; starting over",
    "best.ckpt was damaged; the networks of the epochs before are lost",
)

#: What can happen to a trial whose process is not killed in the middle of something.
FAULTS = {
    "killed after every epoch": Fault(lives=[killed_after(epoch) for epoch in (1, 2, 3)], recorded=3),
    "preempted six times": Fault(
        # The fourth one in the batches on which statistics are estimated, the third after an epoch's report.
        lives=[preempted(at=at) for at in (1, 1, 2, 2, 1, 2)],
        recorded=2,
    ),
    "preempted, its checkpoint damaged": Fault(
        lives=[preempted(at=BATCHES + 2), cut_off("last")], recorded=1, notes=[LAST]
    ),
    "preempted on a full disk": Fault(
        lives=[preempted(at=BATCHES), preempted(at=2, disk_full=True)], recorded=1
    ),
    "the disk full for two epochs": Fault(lives=[killed_after(3, disk_full_after=1)], recorded=1),
    "an older checkpoint empty": Fault(lives=[killed_after(2), empty("last.previous")], recorded=2),
    "a checkpoint cut off": Fault(lives=[killed_after(2), cut_off("last")], recorded=1, notes=[LAST]),
    "a checkpoint scratched": Fault(lives=[killed_after(2), scratch("last")], recorded=1, notes=[LAST]),
    "both checkpoints scratched": Fault(
        lives=[killed_after(2), scratch("last", "last.previous")], recorded=0, notes=[BOTH]
    ),
    "the best network scratched": Fault(lives=[killed_after(2), scratch("best")], recorded=2, notes=[BEST]),
    "a checkpoint and the best network empty": Fault(
        lives=[killed_after(2), empty("last", "best")], recorded=1, notes=[LAST, BEST]
    ),
    "all cut off": Fault(
        lives=[killed_after(2), cut_off("last", "last.previous", "best")], recorded=0, notes=[BOTH, BEST]
    ),
}


@pytest.fixture(scope="module")
def whole(train: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    """The folder of an uninterrupted trial, and the metrics it reported."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, [metrics_of(report) for report in train(folder=folder, epochs=EPOCHS, **STEADY)]


#: All that draws random numbers for images or chooses them, and that no other row has.
RANDOM: dict[str, Any] = {
    "class_sampling": "balanced",
    "class_weights": "balanced",
    "crop_scale": 0.4,
    "rotation": 15.0,
    "color_jitter": 0.3,
    "augment": "augmix",
    "random_erasing": 0.5,
}

#: Nightly rows: another row covers the same kind of fault.
NEARLY = {
    "preempted, its checkpoint damaged",
    "preempted on a full disk",
    "an older checkpoint empty",
    "a checkpoint cut off",
    "a checkpoint scratched",
    "the best network scratched",
    "all cut off",
}


#: Rows that also run with files that a thread writes. Nightly: test_background_writes.py shows what the
#: thread writes, and when.
BACKGROUND = ("killed after every epoch", "preempted six times", "the disk full for two epochs")


def _rows() -> list[Any]:
    rows = [(name, False, name in NEARLY) for name in FAULTS] + [(name, True, True) for name in BACKGROUND]
    return [pytest.param(*row, marks=[pytest.mark.nightly] if nightly else []) for *row, nightly in rows]


@pytest.mark.parametrize(("name", "background"), _rows())
def test_a_trial_resumed_after_a_fault_equals_an_uninterrupted_one(
    name: str,
    background: bool,
    train: Run,
    whole: tuple[Path, list[dict[str, float]]],
    largest_file: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    options = {**STEADY, "background_writes": background}
    fault, trial = FAULTS[name], Lives(train, tmp_path, largest_file, options)
    for life in fault.lives:
        life(trial)
    known = epochs_in_checkpoint(tmp_path)
    assert [metrics_of(report) for report in known] == whole[1][: fault.recorded]
    best_was_damaged = BEST in fault.notes
    assert all((report.best_checkpoint is None) is best_was_damaged for report in known)

    before, trial.notes = trial.reports, []
    trial.reports = []
    trial.live()
    assert trial.notes == list(fault.notes)
    assert [report.epoch for report in trial.reports] == list(range(fault.recorded + 1, EPOCHS + 1))
    assert all(report.best_checkpoint == tmp_path / "best.ckpt" for report in trial.reports)
    for report in before + trial.reports:
        assert metrics_of(report) == whole[1][report.epoch - 1]
    assert_same_files(tmp_path, whole[0])


@pytest.mark.parametrize(
    ("settings", "options", "at"),
    [
        (RANDOM, {}, 3),
        ({"optimizer": "lion", "layer_decay": 0.9, "schedule": "cosine_restarts", "cycles": 2}, {}, 3),
        ({"optimizer": "muon", "freeze_epochs": 1, "classifier_lr_mult": 4.0, "layer_decay": 0.9}, {}, 3),
        ({"freeze_epochs": 1, "optimizer": "adamw"}, {}, 6),
        pytest.param({"optimizer": "adamw"}, {}, 3, marks=pytest.mark.nightly),
        pytest.param({"optimizer": "muon"}, {}, 3, marks=pytest.mark.nightly),
        pytest.param({"optimizer": "rmsprop"}, {}, 3, marks=pytest.mark.nightly),
        # A finalist is evaluated once, after its last epoch.
        ({}, {"metric": "test_accuracy", "mode": "max"}, BATCHES + 2),
        pytest.param({"ema_decay": 0.0, "precise_bn_batches": 4}, {}, 3, marks=pytest.mark.nightly),
        pytest.param({}, {"metric": "test_accuracy", "mode": "max"}, 2, marks=pytest.mark.nightly),
    ],
)
def test_a_preempted_trial_with_other_settings_equals_an_uninterrupted_one(
    train: Run,
    small: TrialConfig,
    settings: dict[str, Any],
    options: dict[str, Any],
    at: int,
    largest_file: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    config = TrialConfig.from_dict(small.to_dict() | settings)
    given = {**STEADY, "epochs": 2, **options}
    alone, left = (
        Lives(functools.partial(train, config), tmp_path / name, largest_file, given)
        for name in ("alone", "left")
    )
    alone.live()
    preempted(at=at)(left)
    left.live()
    assert [metrics_of(report) for report in left.reports] == [metrics_of(report) for report in alone.reports]
    assert_same_files(left.folder, alone.folder)


#: What a trial does between two epochs' reports. Its process is killed before the last one of each of these.
STEPS = ("training_step", "backward", "average", "statistics", "validation_step", "report")

#: What it does with files then: its process is killed before, or half-way through, each one of these.
WRITES = ("save", "torn save", "fsync", "replace")

#: By optimiser: the deeds before which a trial is killed, and the seeds of those killed at random moments.
#: What is killed before an fsync leaves the files of what is killed before the replacement that follows, so
#: that only nightly rows have it. The files are the same for every optimiser. In the background a thread
#: writes them, while steps run whose number before the report differs from trial to trial, so that only the
#: thread's deeds are counted.
DEATHS = {
    "sgd": ((*STEPS, "save", "torn save", "replace"), (0,)),
    "adamw": (("backward", "replace"), ()),
    "sgd, in the background": (("report", *WRITES), (0, 1)),
}


@dataclass(kw_only=True)
class Life:
    """What became of a trial in processes of its own: their exit statuses, and what they reported."""

    folder: Path
    statuses: list[int] = field(default_factory=list)
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)


@pytest.fixture(scope="module")
def lives(small: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Life]]:
    """By key of ``DEATHS``: an uninterrupted trial, and one for each way to be killed, by name."""
    return functools.cache(lambda name: _live(name, small, tmp_path_factory.mktemp("lives")))


def _live(name: str, small: TrialConfig, folder: Path) -> dict[str, Life]:
    """With all on that holds state from step to step or draws random numbers."""
    optimizer, _, background = name.partition(", ")
    config = dataclasses.replace(
        small,
        batch_size=16,
        optimizer=optimizer,
        learning_rate=0.05 if optimizer == "sgd" else 0.002,
        cutmix=0.5,
        augment="randaugment",
    )
    for state in ("mixup", "drop_path", "ema_decay", "warmup_epochs", "precise_bn_batches"):
        assert getattr(config, state) > 0
    assert config.gradient_clip > 0
    assert config.label_smoothing > 0
    job = {"folder": str(folder), "config": config.to_dict(), "epochs": EPOCHS, "writes": WRITES}
    deeds, seeds = DEATHS[name]
    job |= {"deeds": deeds, "seeds": seeds, "background": bool(background)}
    program = [sys.executable, str(Path(__file__).with_name("mortal.py"))]
    done = subprocess.run(program, input=json.dumps(job), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return _lives(folder, (json.loads(line) for line in done.stdout.splitlines()))


def _lives(folder: Path, lines: Iterable[list[Any]]) -> dict[str, Life]:
    lives: defaultdict[str, Life] = defaultdict(lambda: Life(folder=folder))
    for what, trial, *rest in lines:
        life = lives[trial]
        life.folder = folder / trial
        if what == "ended":
            life.statuses.append(rest[0])
        else:
            life.reports.append((rest[0], timeless(rest[1])))
    return dict(lives)


#: Nightly: test_background_writes.py shows what the thread writes, and when; rows above have AdamW's state.
OTHERS = ("sgd, in the background", "adamw")


def _deaths(name: str, values: Iterable[Any]) -> list[Any]:
    """Rows of a key of ``DEATHS``."""
    marks = [pytest.mark.nightly] if name in OTHERS else []
    return [pytest.param(name, value, marks=marks) for value in values]


@pytest.mark.parametrize(
    ("optimizer", "deed"),
    [row for name, (deeds, _) in DEATHS.items() for row in _deaths(name, deeds)],
)
def test_a_trial_killed_before_an_action_equals_an_uninterrupted_one(
    lives: Callable[[str], dict[str, Life]], optimizer: str, deed: str
) -> None:
    killed = {name: life for name, life in lives(optimizer).items() if name.rpartition(" ")[0] == deed}
    assert killed
    for name, life in killed.items():
        assert life.statuses == [STRUCK, 0], name
        _assert_equal(life, lives(optimizer)["whole"])


@pytest.mark.parametrize(
    ("name", "seed"), [row for name, (_, seeds) in DEATHS.items() for row in _deaths(name, seeds)]
)
def test_a_trial_killed_repeatedly_at_random_equals_an_uninterrupted_one(
    lives: Callable[[str], dict[str, Life]], name: str, seed: int
) -> None:
    life = lives(name)[f"SIGKILL {seed}"]
    assert len(life.statuses) >= 2, "it lived to its end"
    assert life.statuses == [-signal.SIGKILL] * (len(life.statuses) - 1) + [0]
    _assert_equal(life, lives(name)["whole"])


def _assert_equal(life: Life, whole: Life) -> None:
    expected = dict(whole.reports)
    assert list(expected) == list(range(1, EPOCHS + 1))
    assert life.reports == [(epoch, expected[epoch]) for epoch, _ in life.reports]
    assert_same_files(life.folder, whole.folder)
