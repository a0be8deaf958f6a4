"""What a person is told about a trial while it runs: one sentence for each thing they should know."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.config import METRICS, PEAK_MEMORY, TEST_METRICS

__all__ = [
    "EpochReport",
    "OnMessage",
    "best_damaged",
    "best_unwritten",
    "checkpoint_unwritten",
    "damaged",
    "ignore",
    "is_better",
    "known_to_recompute",
    "known_too_large",
    "left",
    "left_unwritten",
    "recomputing",
    "smaller",
    "stalled",
    "too_large_to_record",
    "uncompiled",
    "unrecorded",
    "without_images",
]


_TRAINING: Final = {name for name in METRICS if not name.startswith("val_")}


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One finished epoch: validated, and its checkpoint on disk, or a note sent why it is not.

    An epoch that ended in a non-finite training loss is reported too, with nan where nothing was measured
    and without a checkpoint of its own.
    """

    epoch: int
    """Counted from 1."""
    metrics: Mapping[str, float]
    """Exactly the names of ``config.METRICS``, and on a GPU ``config.PEAK_MEMORY``. Of a trial that is judged
    on the test images, instead of validation's the names of ``config.TEST_METRICS``, after its last epoch."""
    checkpoint: Path | None = None
    """The last checkpoint that could be written, from which training goes on; None if there is none."""
    best_checkpoint: Path | None = None
    """The best of the networks that could be written (:func:`tune_rescon.training.load_trained` says of which
    epoch it is); None if there is none."""

    def __post_init__(self) -> None:
        """Every report names every metric: whoever reads one need not ask."""
        names = {name for name in self.metrics if "/" not in name} - {PEAK_MEMORY}
        assert names in (set(METRICS), _TRAINING, _TRAINING | set(TEST_METRICS)), sorted(names)


def is_better(value: float, best: float | None, mode: str) -> bool:
    """Whether ``value`` beats ``best``; the first finite value does, a non-finite one never, a tie does not.

    >>> is_better(0.9, None, "max"), is_better(0.9, 0.8, "min"), is_better(0.8, 0.8, "max")
    (True, False, False)
    >>> is_better(float("nan"), None, "max")
    False
    """
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value > best if mode == "max" else value < best


OnMessage = Callable[[str], None]


def ignore(note: str) -> None:
    """Tell nobody."""
    del note


def smaller(images: int, *, before: int, after: int) -> str:
    """A batch of ``images`` in ``before`` micro-batches was too large for the memory; ``after`` are tried.

    >>> smaller(128, before=1, after=2)
    'ran out of memory at 128 images; going on in 2 micro-batches of 64'
    >>> smaller(100, before=4, after=8)
    'ran out of memory at 25 images; going on in 8 micro-batches of 12 to 13'
    """
    return f"ran out of memory at {_each(images, before)} images; going on in {after} micro-batches of " + (
        _each(images, after)
    )


def without_images(images: int, *, pieces: int) -> str:
    """The smallest micro-batches of a batch did not fit beside the dataset's images, which are let go of.

    >>> without_images(128, pieces=16)
    'ran out of memory at 8 images; going on with the dataset no longer on the device'
    """
    return (
        f"ran out of memory at {_each(images, pieces)} images; "
        "going on with the dataset no longer on the device"
    )


def recomputing(images: int, *, pieces: int) -> str:
    """A batch of ``images`` in ``pieces`` micro-batches was too large; less of it will be kept.

    >>> recomputing(128, pieces=1)
    'ran out of memory at 128 images; going on with their activations computed twice'
    """
    return (
        f"ran out of memory at {_each(images, pieces)} images; going on with their activations computed twice"
    )


def known_to_recompute(images: int) -> str:
    """A whole batch fits if less of it is kept, as another trial has found out.

    >>> known_to_recompute(128)
    'batches of 128 images are too large for the memory, as was found before; activations are computed twice'
    """
    return (
        f"batches of {images} images are too large for the memory, as was found before; "
        "activations are computed twice"
    )


def known_too_large(images: int, *, pieces: int) -> str:
    """Larger micro-batches of this network have run out of this device's memory before.

    >>> known_too_large(128, pieces=2)
    'batches of 128 images are too large for the memory, as was found before; 2 micro-batches of 64'
    """
    return (
        f"batches of {images} images are too large for the memory, as was found before; "
        f"{pieces} micro-batches of {_each(images, pieces)}"
    )


def _each(images: int, pieces: int) -> str:
    least, rest = divmod(images, pieces)
    return f"{least} to {least + 1}" if rest else str(least)


def left_unwritten(epoch: int, batches: int, error: OSError) -> str:
    """The disk did not take the state after so many batches of ``epoch``.

    >>> left_unwritten(3, 117, OSError(28, "No space left on device"))
    'the checkpoint after 117 batches of epoch 3 could not be written (No space left on device)'
    """
    return f"the checkpoint after {batches} batches of epoch {epoch} could not be written ({_cause(error)})"


def left(epoch: int, batches: int) -> str:
    """A trial's process was told to go, after so many batches of ``epoch``.

    >>> left(3, 117)
    'its process was told to end, after 117 batches of epoch 3; another one goes on'
    >>> left(3, 0)
    'its process was told to end, after epoch 2; another one goes on'
    """
    place = f"{batches} batches of epoch {epoch}" if batches else f"epoch {epoch - 1}"
    return f"its process was told to end, after {place}; another one goes on"


def checkpoint_unwritten(epoch: int, error: OSError) -> str:
    """The disk did not take the state after ``epoch``.

    >>> checkpoint_unwritten(3, OSError(28, "No space left on device"))
    'the checkpoint after epoch 3 could not be written (No space left on device); training goes on'
    """
    return f"the checkpoint after epoch {epoch} could not be written ({_cause(error)}); training goes on"


def best_unwritten(epoch: int, error: OSError, *, kept: int | None) -> str:
    """The disk did not take the network of ``epoch``, better than that of epoch ``kept`` (None: none).

    >>> best_unwritten(3, OSError(28, "No space left on device"), kept=2)
    "epoch 3's network could not be written (No space left on device); best.ckpt is still epoch 2's"
    """
    rest = "there is no best.ckpt yet" if kept is None else f"best.ckpt is still epoch {kept}'s"
    return f"epoch {epoch}'s network could not be written ({_cause(error)}); {rest}"


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


def damaged(files: int, *, epoch: int) -> str:
    """``files`` checkpoints cannot be used; training goes on after ``epoch`` (0: from the start).

    >>> damaged(1, epoch=4)
    'the last checkpoint was damaged; going on from epoch 4'
    >>> damaged(2, epoch=0)
    'both checkpoints were damaged; beginning again'
    """
    what = "the last checkpoint was damaged" if files == 1 else "both checkpoints were damaged"
    return f"{what}; {f'going on from epoch {epoch}' if epoch else 'beginning again'}"


def best_damaged() -> str:
    """The best network cannot be read any more."""
    return "best.ckpt was damaged; the networks of the epochs before are lost"


def uncompiled(trouble: str) -> str:
    """A trial was to be compiled, which ``trouble`` prevents.

    >>> uncompiled("No working C++ compiler found")
    'torch.compile cannot be used here (No working C++ compiler found); training goes on without it'
    """
    return f"torch.compile cannot be used here ({trouble}); training goes on without it"


def too_large_to_record(images: int) -> str:
    """The memory of a CUDA graph is its own, and there was too little beside it.

    >>> too_large_to_record(128)
    'a CUDA graph of a batch of 128 images leaves too little memory; training goes on without'
    """
    return f"a CUDA graph of a batch of {images} images leaves too little memory; training goes on without"


def stalled(evidence: Path) -> str:
    """A recording has not come back on this node, as a file there says.

    >>> stalled(Path("stalled/3c.812.txt"))
    'no CUDA graph: one of this network never came back here (stalled/3c.812.txt; remove it to try again)'
    """
    return f"no CUDA graph: one of this network never came back here ({evidence}; remove it to try again)"


def unrecorded(trouble: str) -> str:
    """A step cannot be made a CUDA graph.

    >>> unrecorded("operation not permitted when stream is capturing")
    'no CUDA graph here (operation not permitted when stream is capturing); training goes on without'
    """
    return f"no CUDA graph here ({trouble}); training goes on without"
