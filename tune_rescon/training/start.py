"""Where a trial stands before it trains: read from its folder, and said where something there was lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tune_rescon.errors import StorageError, explain
from tune_rescon.training import notes
from tune_rescon.training.checkpoint import CheckpointFolder, read_checkpoint
from tune_rescon.training.keeper import kept_best
from tune_rescon.training.notes import OnNote
from tune_rescon.training.record import TrialRecord
from tune_rescon.training.report import EpochReport
from tune_rescon.training.trained import TrainedNetwork

__all__ = ["Start", "find_start", "recorded_epochs", "trained_steps"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The beginning of a trial, or the point it goes on from."""

    record: TrialRecord
    checkpoint: Path | None = None
    """None: from the start."""
    best: TrainedNetwork | None = None
    """What ``best.ckpt`` holds."""


def find_start(record: TrialRecord, folder: CheckpointFolder | None, on_note: OnNote) -> Start:
    """How far the trial that begins as ``record`` has come in ``folder`` (made if absent).

    Raises:
        StorageError: the folder cannot be made, or holds another trial's files.
    """
    if folder is None:
        return Start(record=record)
    folder.create()
    found = folder.recover()
    if found.path is not None:
        record = record.continued(_read_record(found.path))
    if found.damaged:
        on_note(notes.damaged(found.damaged, epoch=len(record.history)))
    best = kept_best(folder)
    if best is not None:
        record.check_own(best)
    elif folder.best.exists():
        on_note(notes.best_damaged())
    return Start(record=record, checkpoint=found.path, best=best)


def recorded_epochs(checkpoint_dir: Path) -> tuple[EpochReport, ...]:
    """The epochs that :func:`tune_rescon.training.train_trial` would find behind it, oldest first.

    For a caller that went down between the writing of an epoch's checkpoint and its report: damaged files
    are passed over as there, but nothing is moved. In these, ``epoch_seconds`` leaves out the writing of the
    epoch's own checkpoint, and the files named are those there are now, not those of the epoch.
    """
    folder = CheckpointFolder(path=checkpoint_dir)
    found = folder.find()
    history = _read_record(found.path).history if found.path else ()
    best = folder.best if kept_best(folder) else None
    return tuple(
        EpochReport(epoch=epoch, metrics=metrics, checkpoint=found.path, best_checkpoint=best)
        for epoch, metrics in enumerate(history, start=1)
    )


def trained_steps(checkpoint_dir: Path) -> int:
    """Training steps behind the checkpoint that :func:`recorded_epochs` finds: how far a folder has come."""
    found = CheckpointFolder(path=checkpoint_dir).find()
    return int(read_checkpoint(found.path)["global_step"]) if found.path else 0


def _read_record(checkpoint: Path) -> TrialRecord:
    values = read_checkpoint(checkpoint)
    if "trial" not in values:
        rule = "a checkpoint to go on from must be one a trial wrote"
        raise StorageError(explain(rule, got="one without a trial's record", where=str(checkpoint)))
    return TrialRecord.from_dict(values["trial"])
