"""A trial that is left amid an epoch and goes on equals one that was not, to the last bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport, recorded_epochs
from tune_rescon.training.checkpoint import read_checkpoint
from tune_rescon.training.leaving import Left
from tune_rescon.training.start import trained_steps

if TYPE_CHECKING:
    from tests.training.conftest import Run

pytestmark = pytest.mark.torch

EPOCHS = 3
#: Of an epoch of the small trial.
BATCHES = 4


def timeless(reports: Sequence[EpochReport]) -> list[tuple[int, dict[str, float]]]:
    times = ("images_per_second", "epoch_seconds")
    return [(one.epoch, {k: v for k, v in one.metrics.items() if not k.endswith(times)}) for one in reports]


def when_asked_for_the(nth: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) == nth


def left(train: Run, folder: Path, asked: int, **options: Any) -> tuple[Left, list[EpochReport]]:
    reports: list[EpochReport] = []
    with pytest.raises(Left) as caught:
        train(
            folder=folder,
            epochs=EPOCHS,
            leave=when_asked_for_the(asked),
            **{"on_epoch": reports.append, **options},
        )
    return caught.value, reports


@pytest.fixture(scope="module")
def whole(train: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[EpochReport]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder=folder, epochs=EPOCHS)


def same_training(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same network, average, optimiser and schedule."""
    states = [read_checkpoint(folder / "last.ckpt") for folder in (one, other)]
    tensors = [[*state["state_dict"].values(), *flat(state["optimizer_states"])] for state in states]
    assert len(tensors[0]) == len(tensors[1])
    assert states[0]["lr_schedulers"] == states[1]["lr_schedulers"]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def flat(values: Any) -> list[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [tensor for value in values for tensor in flat(value)] if isinstance(values, list) else []


def test_a_trial_that_is_left_again_and_again_is_the_one_that_was_not(
    train: Run, whole: tuple[Path, list[EpochReport]], tmp_path: Path
) -> None:
    reports, places = [], []
    for asked in (1, 1, 2, 2, 1, 2):
        place, more = left(train, tmp_path, asked)
        places.append((place.epoch, place.batches))
        reports += more
        assert trained_steps(tmp_path) == (place.epoch - 1) * BATCHES + place.batches
        assert len(recorded_epochs(tmp_path)) == place.epoch - 1
    reports += train(folder=tmp_path, epochs=EPOCHS)
    # The fourth one in the batches whose images the statistics are estimated on; 0: after an epoch's report.
    assert places == [(1, 1), (1, 2), (2, 0), (2, 2), (2, 3), (3, 1)]
    assert timeless(reports) == timeless(whole[1])
    assert same_training(tmp_path, whole[0])


@pytest.mark.parametrize("settings", [{"optimizer": "adamw"}, {"ema_decay": 0.0, "precise_bn_batches": 4}])
def test_so_is_a_trial_with_other_state(train: Run, settings: dict[str, Any], tmp_path: Path) -> None:
    from tests.training.conftest import SMALL

    config = TrialConfig.from_dict(SMALL.to_dict() | settings)
    undisturbed = train(config, tmp_path / "whole")
    with pytest.raises(Left):
        train(config, tmp_path / "left", leave=when_asked_for_the(3))
    assert timeless(train(config, tmp_path / "left")) == timeless(undisturbed)
    assert same_training(tmp_path / "left", tmp_path / "whole")


@pytest.mark.parametrize("asked", [2, BATCHES + 2])
def test_so_is_a_finalist_that_is_judged_once(train: Run, asked: int, tmp_path: Path) -> None:
    once = {"metric": "test_accuracy"}
    undisturbed = train(folder=tmp_path / "whole", **once)
    reports: list[EpochReport] = []
    with pytest.raises(Left):
        train(folder=tmp_path / "left", leave=when_asked_for_the(asked), on_epoch=reports.append, **once)
    assert timeless(reports + train(folder=tmp_path / "left", **once)) == timeless(undisturbed)


def test_the_epochs_time_is_that_of_its_training_in_both_processes(train: Run, tmp_path: Path) -> None:
    left(train, tmp_path, 3)
    before = read_checkpoint(tmp_path / "last.ckpt")["epoch_so_far"]
    first = train(folder=tmp_path, epochs=EPOCHS)[0].metrics
    assert first["epoch_seconds"] > before["seconds"] > before["trained_seconds"] > 0
    assert 0 < first["images_per_second"] < BATCHES * 32 / before["trained_seconds"]


def test_what_was_written_amid_an_epoch_is_gone_two_checkpoints_later(train: Run, tmp_path: Path) -> None:
    left(train, tmp_path, 2)
    train(folder=tmp_path, epochs=EPOCHS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "last.previous.ckpt",
    ]
    assert read_checkpoint(tmp_path / "last.previous.ckpt")["trial"]["batches"] == 0


def test_a_damaged_one_costs_the_epoch(
    train: Run, whole: tuple[Path, list[EpochReport]], tmp_path: Path
) -> None:
    _, reports = left(train, tmp_path, BATCHES + 2)
    path = tmp_path / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    notes: list[str] = []
    reports += train(folder=tmp_path, epochs=EPOCHS, on_note=notes.append)
    assert notes == ["the last checkpoint was damaged; going on from epoch 1"]
    assert timeless(reports) == timeless(whole[1])


def test_a_full_disk_costs_the_epoch_and_is_said(
    train: Run,
    whole: tuple[Path, list[EpochReport]],
    tmp_path: Path,
    largest_file: Callable[[int], AbstractContextManager[None]],
) -> None:
    notes: list[str] = []
    _, reports = left(train, tmp_path, BATCHES)
    assert len(reports) == 1
    with largest_file(10_000):
        place, _ = left(train, tmp_path, 2, on_note=notes.append)
    assert (place.epoch, place.batches) == (2, 2)
    assert len(notes) == 1
    assert notes[0].startswith("the checkpoint after 2 batches of epoch 2 could not be written (")
    assert timeless(reports + train(folder=tmp_path, epochs=EPOCHS)) == timeless(whole[1])


def test_nothing_is_left_after_the_last_epoch(train: Run, tmp_path: Path) -> None:
    assert len(train(folder=tmp_path, epochs=1, leave=when_asked_for_the(BATCHES))) == 1
