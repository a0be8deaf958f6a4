"""A trial that was interrupted and goes on equals one that was not, to the last bit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport, load_trained, recorded_epochs

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]
EPOCHS = 4
TIMES = ("images_per_second", "epoch_seconds")


class _Killed(BaseException):
    pass


def values(reports: list[EpochReport]) -> list[dict[str, float]]:
    return [{k: v for k, v in report.metrics.items() if k not in TIMES} for report in reports]


def interrupted(train: Run, config: TrialConfig, folder: Path, *, after: int) -> list[EpochReport]:
    reports: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == after:
            raise _Killed

    with pytest.raises(_Killed):
        train(config, folder=folder, epochs=EPOCHS, on_epoch=stop)
    return reports


def same_file(one: Path, other: Path) -> bool:
    mine, theirs = (load_trained(path)[0].state_dict() for path in (one, other))
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_continued_trial_equals_an_uninterrupted_one(
    train: Run, small: TrialConfig, tmp_path: Path, optimizer: str
) -> None:
    rate = 0.05 if optimizer == "sgd" else 0.002
    config = dataclasses.replace(small, optimizer=optimizer, learning_rate=rate, cutmix=0.5)
    whole = train(config, folder=tmp_path / "whole", epochs=EPOCHS)
    first = interrupted(train, config, tmp_path / "cut", after=2)
    torch.rand(5)  # another process would have another state
    rest = train(config, folder=tmp_path / "cut", epochs=EPOCHS)
    assert [report.epoch for report in rest] == [3, 4]
    assert values(first + rest) == values(whole)
    assert values(list(recorded_epochs(tmp_path / "cut"))) == values(whole)
    assert same_file(tmp_path / "cut" / "best.ckpt", tmp_path / "whole" / "best.ckpt")


def test_a_trial_cut_after_every_epoch_equals_an_uninterrupted_one(
    train: Run, small: TrialConfig, tmp_path: Path
) -> None:
    whole = train(small, epochs=EPOCHS)
    pieces = [interrupted(train, small, tmp_path, after=epoch) for epoch in range(1, EPOCHS + 1)]
    assert [len(piece) for piece in pieces] == [1] * EPOCHS
    assert values([report for piece in pieces for report in piece]) == values(whole)


_KILLED_TRIAL = """
import json, os, signal, sys
from pathlib import Path
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training import train_trial

folder, config = Path(sys.argv[1]), TrialConfig.from_dict(json.loads(sys.argv[2]))

def report(epoch):
    print(json.dumps([epoch.epoch, dict(epoch.metrics)]), flush=True)
    if epoch.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

dataset = open_dataset(DatasetConfig(name="digits", limit=160), data_root=folder, cache_root=folder / "cache")
trial = {"epochs": 4, "seed": 0, "checkpoint_dir": folder / "trial", "device": "cpu", "threads": 1}
train_trial(config, dataset, on_epoch=report, **trial)
"""


def test_a_killed_process_loses_nothing(train: Run, small: TrialConfig, tmp_path: Path) -> None:
    whole = train(small, epochs=EPOCHS)
    arguments = [sys.executable, "-c", _KILLED_TRIAL, str(tmp_path), json.dumps(small.to_dict())]
    killed = subprocess.run(arguments, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert killed.returncode == -9, killed.stderr
    first = [json.loads(line)[1] for line in killed.stdout.splitlines()]
    rest = train(small, folder=tmp_path / "trial", epochs=EPOCHS)
    assert [{k: v for k, v in m.items() if k not in TIMES} for m in first] + values(rest) == values(whole)
