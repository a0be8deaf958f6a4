"""A trial that is asked to end within an epoch: what it writes, when, and what its times are.

That it equals an uninterrupted one once it is resumed: test_resumed_equals_uninterrupted.py.
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
    from tests.training.conftest import Run

pytestmark = pytest.mark.torch


def at_look(nth: int) -> Callable[[], bool]:
    """Asks the trial to end the ``nth`` time it looks."""
    looks = itertools.count(1)
    return lambda: next(looks) == nth


def left(train: Run, folder: Path, at: int, **options: Any) -> Preempted:
    with pytest.raises(Preempted) as caught:
        train(folder=folder, epochs=EPOCHS, is_preempted=at_look(at), **options)
    return caught.value


def test_a_preempted_trial_ends_at_once_and_reports_its_position(train: Run, tmp_path: Path) -> None:
    places = []
    for at in (1, 1, 2, 2, 1, 2):
        place = left(train, tmp_path, at)
        places.append((place.epoch, place.batches))
        assert global_step(tmp_path) == (place.epoch - 1) * BATCHES + place.batches
        assert len(epochs_in_checkpoint(tmp_path)) == place.epoch - 1
    # The fourth one in the batches whose images the statistics are estimated on; 0: after an epoch's report.
    assert places == [(1, 1), (1, 2), (2, 0), (2, 2), (2, 3), (3, 1)]


def test_the_time_of_a_resumed_epoch_includes_both_processes(train: Run, tmp_path: Path) -> None:
    left(train, tmp_path, 3)
    before = read_checkpoint(tmp_path / "last.ckpt")["epoch_so_far"]
    first = train(folder=tmp_path, epochs=EPOCHS)[0].metrics
    assert first["epoch_seconds"] > before["seconds"] > before["trained_seconds"] > 0
    assert 0 < first["images_per_second"] < BATCHES * 16 / before["trained_seconds"]


def test_a_mid_epoch_checkpoint_is_replaced_after_two_more(train: Run, tmp_path: Path) -> None:
    left(train, tmp_path, 2)
    train(folder=tmp_path, epochs=EPOCHS)
    assert read_checkpoint(tmp_path / "last.previous.ckpt")["trial"]["batches"] == 0


def test_a_full_disk_is_reported(
    train: Run, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    notes: list[str] = []
    with largest_file(10_000):
        place = left(train, tmp_path, 2, on_message=notes.append)
    assert (place.epoch, place.batches) == (1, 2)
    (note,) = notes
    assert note.startswith("the checkpoint after 2 batches of epoch 1 could not be written (")


def test_a_trial_preempted_at_its_last_batch_finishes(train: Run, tmp_path: Path) -> None:
    assert len(train(folder=tmp_path, epochs=1, is_preempted=at_look(BATCHES))) == 1
