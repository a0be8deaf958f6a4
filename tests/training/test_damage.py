"""Damaged files of a trial: the network that is kept, and the messages to the user.

test_resumed_equals_uninterrupted.py compares the resumed trial with an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.training import EpochReport, load_trained

pytestmark = pytest.mark.torch

Train = Callable[..., list[EpochReport]]
EPOCHS = 3


def test_a_damaged_network_of_a_finished_trial_is_reported(train: Train, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    path = tmp_path / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    messages: list[str] = []
    assert train(folder=tmp_path, epochs=1, on_message=messages.append) == []
    assert messages == ["best.ckpt was damaged; the networks of the epochs before are lost"]


def test_the_best_network_outlives_damaged_checkpoints(train: Train, tmp_path: Path) -> None:
    """A trial that starts over keeps its best network until a better one comes."""
    options = {"epochs": EPOCHS, "metric": "train_loss", "mode": "min"}
    train(folder=tmp_path, **options)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").write_bytes(b"")
    best_network: list[int] = []

    def check_best_network(report: EpochReport) -> None:
        assert report.best_checkpoint is not None
        best_network.append(load_trained(report.best_checkpoint)[1].epoch)

    train(folder=tmp_path, on_epoch=check_best_network, **options)
    assert best_network == [EPOCHS] * EPOCHS


def test_another_trials_best_network_is_refused(train: Train, small: TrialConfig, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").unlink(missing_ok=True)
    other_config = TrialConfig.from_dict(small.to_dict() | {"learning_rate": 0.01})
    with pytest.raises(StorageError, match="another config"):
        train(other_config, folder=tmp_path, epochs=1)
