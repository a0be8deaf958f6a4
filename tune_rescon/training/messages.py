"""The report of an epoch, and the messages to the user about memory, which several modules send.

Other messages are written where they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.errors import counted
from tune_rescon.metric_names import GPU_METRICS, METRICS, TEST_METRICS

__all__ = [
    "EpochReport",
    "OnMessage",
    "expected_metrics",
    "ignore",
    "known_too_large",
    "never",
    "ran_out",
    "sizes",
]


_TRAINING: Final = {name for name in METRICS if not name.startswith("val_")}


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """The report of an epoch, after its validation and after its files were written.

    If a file could not be written, a message has said so. An epoch that ended with a non-finite training loss
    is reported too, with nan for values that were not measured and without its own checkpoint.
    """

    epoch: int
    """Counted from 1."""
    metrics: Mapping[str, float]
    """All names of ``METRICS``, and on a GPU those of ``GPU_METRICS``. The names of further metrics of the
    validation images (``Objective.log``) begin with ``val_``.

    A trial that is evaluated on the test images has no validation metrics. After its last epoch it has the
    names of ``metric_names.TEST_METRICS`` instead.
    """
    checkpoint: Path | None = None
    """The newest checkpoint, from which training resumes; None before the first one."""
    best_checkpoint: Path | None = None
    """The file of the best network so far, which :func:`tune_rescon.training.load_trained` reads; None before
    the first one."""

    def __post_init__(self) -> None:
        """Check that the report has every metric, so that its readers need not check."""
        names = {name for name in self.metrics if "/" not in name} - set(GPU_METRICS)
        further = {name for name in names - METRICS.keys() if name.startswith("val_")}
        assert names - further == expected_metrics(names), sorted(names)


def expected_metrics(measured: Collection[str]) -> set[str]:
    """Return the names that an epoch's report must have, by the kind of images that ``measured`` are of."""
    if any(name in TEST_METRICS for name in measured):
        return _TRAINING | set(TEST_METRICS)
    return set(METRICS) if any(name.startswith("val_") for name in measured) else _TRAINING


OnMessage = Callable[[str], None]


def ignore(value: object) -> None:
    """Discard a message, or the progress of an epoch."""
    del value


def never() -> bool:
    """Return False: no preemption is requested."""
    return False


def ran_out(images: int, micro_batches: int, *, then: str) -> str:
    """Return the message that a batch ran out of memory, and how the trial continues.

    >>> ran_out(128, 16, then="with the dataset no longer on the device")
    'ran out of memory at 8 images; continuing with the dataset no longer on the device'
    >>> ran_out(100, 4, then="with activation checkpointing")
    'ran out of memory at 25 images; continuing with activation checkpointing'
    >>> ran_out(16, 16, then="in smaller pieces")
    'ran out of memory at 1 image; continuing in smaller pieces'
    """
    plural = "" if images == micro_batches else "s"
    return f"ran out of memory at {sizes(images, micro_batches)} image{plural}; continuing {then}"


def known_too_large(images: int, *, then: str) -> str:
    """Return the message that a batch ran out of this device's memory in an earlier trial.

    >>> known_too_large(128, then=f"2 micro-batches of {sizes(128, 2)}")
    'batches of 128 images are too large for the memory, as was found before; 2 micro-batches of 64'
    """
    return f"batches of {counted(images, 'image')} are too large for the memory, as was found before; {then}"


def sizes(images: int, micro_batches: int) -> str:
    """Return the number of images in each micro-batch.

    >>> sizes(128, 2), sizes(100, 8)
    ('64', '12 to 13')
    """
    least, rest = divmod(images, micro_batches)
    return f"{least} to {least + 1}" if rest else str(least)
