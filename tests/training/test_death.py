"""A trial killed at any moment and continued equals one that was not, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.training import recorded_epochs
from tune_rescon.training.checkpoint import read_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

EPOCHS = 3
STRUCK = 77
TIMES = ("images_per_second", "epoch_seconds")

#: All that happens from one epoch's report to the next one's, in that order.
POINTS = (
    "training_step 1",
    "training_step 3",
    "backward 3",
    "average 2",
    "statistics 1",
    "validation_step 1",
    "save 1",
    "torn save 1",
    "fsync 1",
    "replace 1",
    "fsync 2",
    "save 2",
    "torn save 2",
    "fsync 3",
    "replace 2",
    "replace 3",
    "fsync 4",
    "report 1",
)
SEEDS = (0, 1)

#: By optimiser: what it is tried on. The files are the same whichever wrote them.
DEATHS = {"sgd": (POINTS, SEEDS), "adamw": (("backward 3", "replace 3"), ())}
TRIALS = [
    (optimizer, trial)
    for optimizer, (points, seeds) in DEATHS.items()
    for trial in (*points, *(f"SIGKILL {seed}" for seed in seeds))
]


@dataclass(kw_only=True)
class Life:
    """What became of one trial."""

    folder: Path
    deaths: list[int] = field(default_factory=list)
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)


def _timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


@pytest.fixture(scope="module")
def lives(small: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Life]]:
    """By optimiser and name: a trial undisturbed, and one for each way to die."""
    return {name: _live(name, small, tmp_path_factory.mktemp(name)) for name in DEATHS}


def _live(optimizer: str, small: TrialConfig, folder: Path) -> dict[str, Life]:
    """With all on that holds state from step to step or draws random numbers."""
    config = dataclasses.replace(
        small,
        batch_size=16,
        optimizer=optimizer,
        learning_rate=0.05 if optimizer == "sgd" else 0.002,
        cutmix=0.5,
        augment="randaugment",
    )
    for name in ("mixup", "drop_path", "ema_decay", "warmup_epochs", "precise_bn_batches"):
        assert getattr(config, name) > 0
    assert config.gradient_clip > 0
    assert config.label_smoothing > 0
    job = {"folder": str(folder), "config": config.to_dict(), "epochs": EPOCHS}
    points, seeds = DEATHS[optimizer]
    job |= {"points": points, "seeds": seeds}
    program = [sys.executable, str(Path(__file__).with_name("mortal.py"))]
    done = subprocess.run(program, input=json.dumps(job), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return _lives(folder, (json.loads(line) for line in done.stdout.splitlines()))


def _lives(folder: Path, told: Iterator[list[Any]]) -> dict[str, Life]:
    lives: defaultdict[str, Life] = defaultdict(lambda: Life(folder=folder))
    for what, trial, *rest in told:
        life = lives[trial]
        life.folder = folder / trial
        if what == "died":
            life.deaths.append(rest[0])
        else:
            life.reports.append((rest[0], _timeless(rest[1])))
    return dict(lives)


def _assert_equal_to_the_last_bit(life: Life, whole: Life) -> None:
    expected = dict(whole.reports)
    assert [epoch for epoch, _ in whole.reports] == list(range(1, EPOCHS + 1))
    assert life.reports == [(epoch, expected[epoch]) for epoch, _ in life.reports]
    recorded = [_timeless(dict(report.metrics)) for report in recorded_epochs(life.folder)]
    assert recorded == list(expected.values())
    files = ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
    assert sorted(path.name for path in life.folder.iterdir()) == files
    mine, theirs = (read_checkpoint(one.folder / "best.ckpt") for one in (life, whole))
    assert mine["about"]["epoch"] == theirs["about"]["epoch"] >= 2
    torch.testing.assert_close(mine["weights"], theirs["weights"], rtol=0, atol=0)
    torch.testing.assert_close(_state(life), _state(whole), rtol=0, atol=0)


def _state(life: Life) -> dict[str, Any]:
    values = read_checkpoint(life.folder / "last.ckpt")
    return {name: values[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


@pytest.mark.parametrize(("optimizer", "trial"), TRIALS)
def test_a_trial_struck_down_equals_an_undisturbed_one(
    lives: dict[str, dict[str, Life]], optimizer: str, trial: str
) -> None:
    life, whole = lives[optimizer][trial], lives[optimizer]["whole"]
    *deaths, end = life.deaths
    assert deaths == ([-signal.SIGKILL] * len(deaths) if "SIGKILL" in trial else [STRUCK])
    assert end == 0
    _assert_equal_to_the_last_bit(life, whole)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_first_kill_came_too_late(lives: dict[str, dict[str, Life]], seed: int) -> None:
    assert len(lives["sgd"][f"SIGKILL {seed}"].deaths) >= 2
