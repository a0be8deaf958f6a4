"""A resumed trial against an uninterrupted one: lives that end early, faults between them, the comparison.

A trial is lived in a folder: each life trains from what the one before it left there, and ends early. The
last one trains to the end. What all of them reported, and what the folder holds then, must be what one
undisturbed life leaves, to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from tune_rescon.training import EpochReport, epochs_in_checkpoint
from tune_rescon.training.callbacks import Preempted
from tune_rescon.training.checkpoint import read_checkpoint

__all__ = [
    "BATCHES",
    "EPOCHS",
    "STEADY",
    "Fault",
    "Lives",
    "assert_same_files",
    "cut_off",
    "empty",
    "killed_after",
    "metrics_of",
    "preempted",
    "scratch",
    "timeless",
]

EPOCHS: Final = 3

#: Batches in an epoch of the small trial.
BATCHES: Final = 4

#: The objective that gets better every epoch of the small trial, so that each has a best network to write.
STEADY: Final[Mapping[str, Any]] = {"metric": "train_loss", "mode": "min"}

_TIMES: Final = ("images_per_second", "epoch_seconds")


def metrics_of(report: EpochReport) -> dict[str, float]:
    """A report's metrics that do not depend on the clock."""
    return timeless(report.metrics)


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if not name.endswith(_TIMES)}


class Lives:
    """The lives of one trial in one folder: its reports and notes so far."""

    def __init__(
        self,
        train: Callable[..., object],
        folder: Path,
        largest_file: Callable[[int], AbstractContextManager[None]],
        options: Mapping[str, Any] = STEADY,
    ) -> None:
        self.folder = folder
        self.largest_file = largest_file
        self.reports: list[EpochReport] = []
        self.notes: list[str] = []
        self._train = train
        self._options = options

    def live(self, **more: Any) -> None:
        """Train from what is there to the end, or to what ``more`` options end it by."""
        given: dict[str, Any] = {"epochs": EPOCHS, "on_epoch": self.reports.append}
        given |= {"folder": self.folder, "on_message": self.notes.append, **self._options}
        self._train(**given | more)


Life = Callable[[Lives], object]


class _Killed(BaseException):
    """Ends a trial as a signal ends its process: no handler of the package catches it."""


def killed_after(epoch: int, *, disk_full_after: int | None = None) -> Life:
    """A life that ends with the report of ``epoch``; after ``disk_full_after`` the disk is full."""

    def life(trial: Lives) -> None:
        def report(done: EpochReport) -> None:
            trial.reports.append(done)
            if done.epoch == disk_full_after:
                disk.enter_context(trial.largest_file(100_000))
            if done.epoch == epoch:
                raise _Killed

        with ExitStack() as disk, pytest.raises(_Killed):
            trial.live(on_epoch=report)

    return life


def preempted(*, at: int, disk_full: bool = False) -> Life:
    """A life that is asked to end at the ``at``-th moment at which a trial looks, and checkpoints first."""

    def life(trial: Lives) -> None:
        looks = itertools.count(1)
        disk = trial.largest_file(10_000) if disk_full else nullcontext()
        with disk, pytest.raises(Preempted):
            trial.live(is_preempted=lambda: next(looks) == at)

    return life


def empty(*names: str) -> Life:
    """These checkpoints are empty files afterwards."""
    return _damaged(names, lambda _: b"")


def cut_off(*names: str) -> Life:
    """These checkpoints lack their end afterwards."""
    return _damaged(names, lambda data: data[:-100])


def scratch(*names: str) -> Life:
    """Bits in the middle of these checkpoints are others afterwards; their length is the same."""

    def flipped(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 256]) + data[middle + 256 :]

    return _damaged(names, flipped)


def _damaged(names: Iterable[str], change: Callable[[bytes], bytes]) -> Life:
    def damage(trial: Lives) -> None:
        for name in names:
            path = trial.folder / f"{name}.ckpt"
            path.write_bytes(change(path.read_bytes()))

    return damage


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a trial before its last life."""

    lives: Sequence[Life]
    recorded: int
    """Epochs that the folder still holds when the last life begins."""
    notes: Sequence[str] = ()
    """What the last life tells the user."""


def assert_same_files(folder: Path, whole: Path) -> None:
    """Both folders hold the same epochs, best network, training state and no other file."""
    mine, theirs = ([metrics_of(report) for report in epochs_in_checkpoint(one)] for one in (folder, whole))
    assert mine == theirs
    names = ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    best = [read_checkpoint(one / "best.ckpt") for one in (folder, whole)]
    assert best[0]["about"]["epoch"] == best[1]["about"]["epoch"]
    torch.testing.assert_close(best[0]["weights"], best[1]["weights"], rtol=0, atol=0)
    last = [read_checkpoint(one / "last.ckpt") for one in (folder, whole)]
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(last[0][name], last[1][name], rtol=0, atol=0)
