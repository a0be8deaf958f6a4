"""A trial that is preempted within an epoch: its files and its times.

test_resumed_equals_uninterrupted.py compares the resumed trial with an uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.training.resuming import BATCHES, EPOCHS
from tune_rescon.training import epochs_in_checkpoint
from tune_rescon.training.callbacks import Preempted
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.trial_files import global_step

if TYPE_CHECKING:
    from tests.training.conftest import Train

pytestmark = pytest.mark.torch


def at_check(nth: int) -> Callable[[], bool]:
    """Return an ``is_preempted`` that is True at its ``nth`` call."""
    checks = itertools.count(1)
    return lambda: next(checks) == nth


def preempted_position(train: Train, folder: Path, at: int, **options: Any) -> Preempted:
    with pytest.raises(Preempted) as error:
        train(folder=folder, epochs=EPOCHS, is_preempted=at_check(at), **options)
    return error.value


def test_a_preempted_trial_ends_at_once_and_reports_its_position(train: Train, tmp_path: Path) -> None:
    positions = []
    for at in (1, 1, 2, 2, 1, 2):
        position = preempted_position(train, tmp_path, at)
        positions.append((position.epoch, position.batches))
        assert global_step(tmp_path) == (position.epoch - 1) * BATCHES + position.batches
        assert len(epochs_in_checkpoint(tmp_path)) == position.epoch - 1
    # The fourth one while batch norm statistics are estimated; 0: after an epoch's report.
    assert positions == [(1, 1), (1, 2), (2, 0), (2, 2), (2, 3), (3, 1)]


def test_the_time_of_a_resumed_epoch_includes_both_processes(train: Train, tmp_path: Path) -> None:
    preempted_position(train, tmp_path, 3)
    before = read_checkpoint(tmp_path / "last.ckpt")["epoch_so_far"]
    first = train(folder=tmp_path, epochs=EPOCHS)[0].metrics
    assert first["epoch_seconds"] > before["seconds"] > before["trained_seconds"] > 0
    assert 0 < first["images_per_second"] < BATCHES * 16 / before["trained_seconds"]


def test_a_mid_epoch_checkpoint_is_replaced_after_two_more(train: Train, tmp_path: Path) -> None:
    preempted_position(train, tmp_path, 2)
    train(folder=tmp_path, epochs=EPOCHS)
    assert read_checkpoint(tmp_path / "last.previous.ckpt")["trial"]["batches"] == 0


def test_a_full_disk_is_reported(
    train: Train, tmp_path: Path, file_size_limit: Callable[[int], AbstractContextManager[None]]
) -> None:
    notes: list[str] = []
    with file_size_limit(10_000):
        position = preempted_position(train, tmp_path, 2, on_message=notes.append)
    assert (position.epoch, position.batches) == (1, 2)
    (note,) = notes
    assert note.startswith("the checkpoint after 2 batches of epoch 1 could not be written (")


def test_a_trial_preempted_at_its_last_batch_finishes(train: Train, tmp_path: Path) -> None:
    assert len(train(folder=tmp_path, epochs=1, is_preempted=at_check(BATCHES))) == 1
