"""Damaged files of a trial: whose network is kept, and what the user is told.

That the trial equals an undamaged one once it is resumed: test_resumed_equals_uninterrupted.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.training import EpochReport, load_trained

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]
EPOCHS = 3


def test_a_damaged_network_of_a_finished_trial_is_reported(train: Run, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    path = tmp_path / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    told: list[str] = []
    assert train(folder=tmp_path, epochs=1, on_message=told.append) == []
    assert told == ["best.ckpt was damaged; the networks of the epochs before are lost"]


def test_the_best_network_outlives_damaged_checkpoints(train: Run, tmp_path: Path) -> None:
    """A trial that begins again is the same trial: what it once kept is not replaced by something worse."""
    options = {"epochs": EPOCHS, "metric": "train_loss", "mode": "min"}
    train(folder=tmp_path, **options)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").write_bytes(b"")
    kept: list[int] = []

    def look(report: EpochReport) -> None:
        assert report.best_checkpoint is not None
        kept.append(load_trained(report.best_checkpoint)[1].epoch)

    train(folder=tmp_path, on_epoch=look, **options)
    assert kept == [EPOCHS] * EPOCHS


def test_another_trials_best_network_is_refused(train: Run, small: TrialConfig, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").unlink(missing_ok=True)
    other = TrialConfig.from_dict(small.to_dict() | {"learning_rate": 0.01})
    with pytest.raises(StorageError, match="another config"):
        train(other, folder=tmp_path, epochs=1)
