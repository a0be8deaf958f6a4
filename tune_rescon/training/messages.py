"""The messages to the user about a running trial, one sentence each, and the report of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.errors import counted
from tune_rescon.metric_names import GPU_METRICS, METRICS, TEST_METRICS

__all__ = [
    "EpochReport",
    "OnMessage",
    "best_damaged",
    "best_unwritten",
    "cannot_recompute",
    "checkpoint_unwritten",
    "damaged",
    "ignore",
    "ignore_progress",
    "is_better",
    "known_to_recompute",
    "known_too_large",
    "mid_epoch_unwritten",
    "never",
    "no_fp16",
    "preempted",
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
    """A finished epoch, which was validated and saved; if saving failed, a message has reported why.

    An epoch that ended with a non-finite training loss is reported too, with nan for values that were not
    measured and without its own checkpoint.
    """

    epoch: int
    """Counted from 1."""
    metrics: Mapping[str, float]
    """All names of ``METRICS``, and on a GPU those of ``GPU_METRICS``. Further metrics of the validation
    images, if they were asked for, begin with ``val_``.

    A trial that is evaluated on the test images has no validation metrics. After its last epoch it has the
    names of ``metric_names.TEST_METRICS`` instead.
    """
    checkpoint: Path | None = None
    """The last checkpoint that was written, from which training resumes; None if no checkpoint exists."""
    best_checkpoint: Path | None = None
    """The best network that could be written; None if none could be.

    :func:`tune_rescon.training.load_trained` returns its epoch.
    """

    def __post_init__(self) -> None:
        """Check that the report has every metric, so that its readers need not check."""
        names = {name for name in self.metrics if "/" not in name} - set(GPU_METRICS)
        further = {name for name in names - METRICS.keys() if name.startswith("val_")}
        wanted = (set(METRICS), _TRAINING, _TRAINING | set(TEST_METRICS))
        assert names - further in (wanted[:1] if further else wanted), sorted(names)


def is_better(value: float, best: float | None, mode: str) -> bool:
    """Return whether ``value`` is better than ``best``.

    The first finite value is better. A non-finite value never is, and neither is a tie.

    Args:
        value: the new value.
        best: the best value so far; None if there has been no finite one.
        mode: "max" or "min".

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
    """Discard the message."""
    del note


def ignore_progress(share: float) -> None:
    """Discard the progress of an epoch."""
    del share


def never() -> bool:
    """Return False: no preemption is ever requested."""
    return False


def smaller(images: int, *, before: int, after: int) -> str:
    """Return the message that a batch ran out of memory and is tried again in more micro-batches.

    Args:
        images: images of the batch.
        before: micro-batches that were too large.
        after: micro-batches to try next.

    >>> smaller(128, before=1, after=2)
    'ran out of memory at 128 images; continuing in 2 micro-batches of 64'
    >>> smaller(100, before=4, after=8)
    'ran out of memory at 25 images; continuing in 8 micro-batches of 12 to 13'
    """
    return (
        f"ran out of memory at {_images_each(images, before)}; continuing in {after} micro-batches of"
        f" {_each(images, after)}"
    )


def without_images(images: int, *, micro_batches: int) -> str:
    """Return the message that the dataset's images are freed, because the smallest micro-batches did not fit.

    >>> without_images(128, micro_batches=16)
    'ran out of memory at 8 images; continuing with the dataset no longer on the device'
    >>> without_images(16, micro_batches=16)
    'ran out of memory at 1 image; continuing with the dataset no longer on the device'
    """
    return (
        f"ran out of memory at {_images_each(images, micro_batches)}; "
        "continuing with the dataset no longer on the device"
    )


def cannot_recompute() -> str:
    """Return the message that ``checkpoint_activations: on`` has no effect on a network from elsewhere.

    >>> cannot_recompute()
    'keeps all activations, because checkpoint_activations works with Residual Attention Networks only'
    """
    return "keeps all activations, because checkpoint_activations works with Residual Attention Networks only"


def recomputing(images: int, *, micro_batches: int) -> str:
    """Return the message that activations are recomputed, because the micro-batches were too large.

    >>> recomputing(128, micro_batches=1)
    'ran out of memory at 128 images; continuing with activation checkpointing'
    """
    size = _images_each(images, micro_batches)
    return f"ran out of memory at {size}; continuing with activation checkpointing"


def known_to_recompute(images: int) -> str:
    """Return the message that activations are recomputed, because another trial needed that to fit the batch.

    >>> known_to_recompute(128)
    'batches of 128 images are too large for the memory, as was found before; activation checkpointing is on'
    """
    return (
        f"batches of {counted(images, 'image')} are too large for the memory, as was found before; "
        "activation checkpointing is on"
    )


def known_too_large(images: int, *, micro_batches: int) -> str:
    """Return the message that larger micro-batches of this network ran out of this device's memory before.

    >>> known_too_large(128, micro_batches=2)
    'batches of 128 images are too large for the memory, as was found before; 2 micro-batches of 64'
    """
    return (
        f"batches of {counted(images, 'image')} are too large for the memory, as was found before; "
        f"{counted(micro_batches, 'micro-batch', 'micro-batches')} of {_each(images, micro_batches)}"
    )


def _images_each(images: int, micro_batches: int) -> str:
    return f"{_each(images, micro_batches)} image{'' if images == micro_batches else 's'}"


def _each(images: int, micro_batches: int) -> str:
    least, rest = divmod(images, micro_batches)
    return f"{least} to {least + 1}" if rest else str(least)


def mid_epoch_unwritten(epoch: int, batches: int, error: OSError) -> str:
    """Return the message that the checkpoint within an epoch could not be written.

    Args:
        epoch: the epoch, counted from 1.
        batches: batches of the epoch that were trained.
        error: the error of the write.

    >>> mid_epoch_unwritten(3, 117, OSError(28, "No space left on device"))
    'the checkpoint after 117 batches of epoch 3 could not be written (No space left on device)'
    """
    trained = counted(batches, "batch", "batches")
    return f"the checkpoint after {trained} of epoch {epoch} could not be written ({_cause(error)})"


def preempted(epoch: int, batches: int) -> str:
    """Return the message that a trial's process was preempted after ``batches`` batches of ``epoch``.

    >>> preempted(3, 117)
    'its process was asked to end, after 117 batches of epoch 3; another process continues'
    >>> preempted(3, 1)
    'its process was asked to end, after 1 batch of epoch 3; another process continues'
    >>> preempted(3, 0)
    'its process was asked to end, after epoch 2; another process continues'
    """
    place = f"{counted(batches, 'batch', 'batches')} of epoch {epoch}" if batches else f"epoch {epoch - 1}"
    return f"its process was asked to end, after {place}; another process continues"


def checkpoint_unwritten(epoch: int, error: OSError) -> str:
    """Return the message that the checkpoint after ``epoch`` could not be written.

    >>> checkpoint_unwritten(3, OSError(28, "No space left on device"))
    'the checkpoint after epoch 3 could not be written (No space left on device); training continues'
    """
    return f"the checkpoint after epoch {epoch} could not be written ({_cause(error)}); training continues"


def best_unwritten(epoch: int, error: OSError, *, kept: int | None) -> str:
    """Return the message that a better network could not be written.

    Args:
        epoch: the epoch of the better network.
        error: the error of the write.
        kept: the epoch of the network in ``best.ckpt``; None if the file does not exist.

    >>> best_unwritten(3, OSError(28, "No space left on device"), kept=2)
    "epoch 3's network could not be written (No space left on device); best.ckpt is still epoch 2's"
    """
    rest = "there is no best.ckpt yet" if kept is None else f"best.ckpt is still epoch {kept}'s"
    return f"epoch {epoch}'s network could not be written ({_cause(error)}); {rest}"


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


def damaged(files: int, *, epoch: int) -> str:
    """Return the message that ``files`` checkpoints are damaged and where training resumes.

    ``epoch`` is the last epoch that is kept; 0 starts from the beginning.

    >>> damaged(1, epoch=4)
    'the last checkpoint was damaged; resuming from epoch 4'
    >>> damaged(2, epoch=0)
    'both checkpoints were damaged; starting over'
    """
    what = "the last checkpoint was damaged" if files == 1 else "both checkpoints were damaged"
    return f"{what}; {f'resuming from epoch {epoch}' if epoch else 'starting over'}"


def best_damaged() -> str:
    """Return the message that the best network can no longer be read."""
    return "best.ckpt was damaged; the networks of the epochs before are lost"


def no_fp16() -> str:
    """Return the message that a trial on a CPU does not train in fp16.

    >>> no_fp16()
    'precision fp16 is for GPUs; this trial trains in fp32 on its CPU'
    """
    return "precision fp16 is for GPUs; this trial trains in fp32 on its CPU"


def uncompiled(reason: str) -> str:
    """Return the message that ``reason`` prevents torch.compile from being used.

    >>> uncompiled("No working C++ compiler found")
    'torch.compile cannot be used here (No working C++ compiler found); training continues without it'
    """
    return f"torch.compile cannot be used here ({reason}); training continues without it"


def too_large_to_record(images: int) -> str:
    """Return the message that a CUDA graph, which has its own memory, leaves too little for the rest.

    >>> too_large_to_record(128)
    'a CUDA graph of a batch of 128 images leaves too little memory; training continues without'
    """
    batch = counted(images, "image")
    return f"a CUDA graph of a batch of {batch} leaves too little memory; training continues without"


def stalled(evidence: Path) -> str:
    """Return the message that a recording has hung on this node, with the file that records where.

    >>> stalled(Path("stalled/3c.812.txt"))
    'no CUDA graph: one of this network never came back here (stalled/3c.812.txt; remove it to try again)'
    """
    return f"no CUDA graph: one of this network never came back here ({evidence}; remove it to try again)"


def unrecorded(reason: str) -> str:
    """Return the message that a step cannot be recorded as a CUDA graph.

    >>> unrecorded("operation not permitted when stream is capturing")
    'no CUDA graph here (operation not permitted when stream is capturing); training continues without'
    """
    return f"no CUDA graph here ({reason}); training continues without"
