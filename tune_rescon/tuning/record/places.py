"""Where a trial's checkpoints are, relative to the search's folder: the form in which the record holds them.

A search is its folder, wherever that lies. Its record names no place outside it, so the folder can be moved,
copied, mounted elsewhere or sent to a URL.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CHECKPOINTS", "TRIAL_FILES", "recorded_checkpoint", "trial_folder"]

#: The directory of all trials' checkpoints.
CHECKPOINTS: Final = "checkpoints"

#: The files that a trial writes (:class:`tune_rescon.training.checkpoint.CheckpointFolder`). Only these are
#: ever deleted: what else lies beside them is the user's.
TRIAL_FILES: Final = frozenset(
    {"best.ckpt", "best.partial", "last.ckpt", "last.partial", "last.previous.ckpt"}
)


def trial_folder(number: int) -> str:
    """The directory of one trial's checkpoints.

    >>> trial_folder(7)
    'checkpoints/trial_0007'
    """
    return f"{CHECKPOINTS}/trial_{number:04d}"


def recorded_checkpoint(number: int, place: str | None) -> str | None:
    """The checkpoint of trial ``number`` as the record holds it; None if there is none.

    ``place`` is a path or URL. Only the name of its file is taken: earlier versions recorded absolute
    places, and the folder may have been moved or copied since.

    >>> recorded_checkpoint(7, "/old/runs/a/checkpoints/trial_0007/best.ckpt")
    'checkpoints/trial_0007/best.ckpt'
    """
    if place is None:
        return None
    return f"{trial_folder(number)}/{place.rpartition('/')[2]}"
