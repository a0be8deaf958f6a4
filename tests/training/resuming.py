"""Compare a resumed trial with an uninterrupted one: interrupted runs, faults between them, the comparison.

Each run of a trial resumes from the files of the previous one in the same folder and is interrupted. The last
run trains to the end. All reports and the files must equal those of one uninterrupted run bit for bit.
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
    "IMPROVING",
    "Fault",
    "ResumedTrial",
    "assert_same_files",
    "corrupt",
    "empty",
    "killed_after",
    "metrics_of",
    "preempted",
    "truncate",
    "without_timings",
]

EPOCHS: Final = 3

#: Batches in an epoch of the small trial.
BATCHES: Final = 4

#: An objective that improves in every epoch of the small trial, so that each epoch writes a best network.
IMPROVING: Final[Mapping[str, Any]] = {"metric": "train_loss", "mode": "min"}

_TIMES: Final = ("images_per_second", "epoch_seconds")


def metrics_of(report: EpochReport) -> dict[str, float]:
    """The metrics of a report that do not depend on the clock."""
    return without_timings(report.metrics)


def without_timings(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if not name.endswith(_TIMES)}


class ResumedTrial:
    """A trial that is run several times in one folder, with the reports and notes of all runs."""

    def __init__(
        self,
        train: Callable[..., object],
        folder: Path,
        file_size_limit: Callable[[int], AbstractContextManager[None]],
        options: Mapping[str, Any] = IMPROVING,
    ) -> None:
        self.folder = folder
        self.file_size_limit = file_size_limit
        self.reports: list[EpochReport] = []
        self.notes: list[str] = []
        self._train = train
        self._options = options

    def run(self, **more: Any) -> None:
        """Resume from the folder and train to the end, unless the ``more`` options interrupt the run."""
        options: dict[str, Any] = {"epochs": EPOCHS, "on_epoch": self.reports.append}
        options |= {"folder": self.folder, "on_message": self.notes.append, **self._options}
        self._train(**options | more)


Stage = Callable[[ResumedTrial], object]


class _Killed(BaseException):
    """Ends a trial like a signal: no handler of the package catches it."""


def killed_after(epoch: int, *, disk_full_after: int | None = None) -> Stage:
    """A run that is killed in the report of ``epoch``; the disk is full after ``disk_full_after``."""

    def stage(trial: ResumedTrial) -> None:
        def report(epoch_report: EpochReport) -> None:
            trial.reports.append(epoch_report)
            if epoch_report.epoch == disk_full_after:
                disk.enter_context(trial.file_size_limit(100_000))
            if epoch_report.epoch == epoch:
                raise _Killed

        with ExitStack() as disk, pytest.raises(_Killed):
            trial.run(on_epoch=report)

    return stage


def preempted(*, at: int, disk_full: bool = False) -> Stage:
    """A run that is preempted at its ``at``-th check, and writes a checkpoint first."""

    def stage(trial: ResumedTrial) -> None:
        checks = itertools.count(1)
        disk = trial.file_size_limit(10_000) if disk_full else nullcontext()
        with disk, pytest.raises(Preempted):
            trial.run(is_preempted=lambda: next(checks) == at)

    return stage


def empty(*names: str) -> Stage:
    """Replace these checkpoints by empty files."""
    return _change_files(names, lambda _: b"")


def truncate(*names: str) -> Stage:
    """Remove the end of these checkpoints."""
    return _change_files(names, lambda data: data[:-100])


def corrupt(*names: str) -> Stage:
    """Flip bits in the middle of these checkpoints."""

    def flipped(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 256]) + data[middle + 256 :]

    return _change_files(names, flipped)


def _change_files(names: Iterable[str], change: Callable[[bytes], bytes]) -> Stage:
    def change_files(trial: ResumedTrial) -> None:
        for name in names:
            path = trial.folder / f"{name}.ckpt"
            path.write_bytes(change(path.read_bytes()))

    return change_files


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The interrupted runs of a trial and the faults between them, before its last run."""

    stages: Sequence[Stage]
    recorded: int
    """Number of epochs in the folder at the start of the last run."""
    notes: Sequence[str] = ()
    """The messages of the last run."""


def assert_same_files(folder: Path, uninterrupted: Path) -> None:
    """Assert that both folders have the same epochs, best network and training state, and no other file."""
    actual, expected = (
        [metrics_of(report) for report in epochs_in_checkpoint(path)] for path in (folder, uninterrupted)
    )
    assert actual == expected
    names = ["best.ckpt", "last.ckpt", "last.previous.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    best = [read_checkpoint(path / "best.ckpt") for path in (folder, uninterrupted)]
    assert best[0]["about"]["epoch"] == best[1]["about"]["epoch"]
    torch.testing.assert_close(best[0]["weights"], best[1]["weights"], rtol=0, atol=0)
    last = [read_checkpoint(path / "last.ckpt") for path in (folder, uninterrupted)]
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(last[0][name], last[1][name], rtol=0, atol=0)
