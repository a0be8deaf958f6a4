"""What one epoch of a trial came to: the message from training to whoever runs it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tune_rescon.config import METRICS, PEAK_MEMORY, TEST_METRICS

__all__ = ["EpochReport", "is_better"]

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
