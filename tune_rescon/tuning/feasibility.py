"""Which trials cannot fit into memory, because one with the same network did not."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from tune_rescon.config import TrialConfig

__all__ = ["memory_signature"]

#: What decides the memory a trial needs once its batches have been cut to the smallest micro-batch.
_FIELDS: Final = (
    "dataset",
    "preset",
    "layout",
    "depth",
    "width",
    "image_size",
    "attention",
    "attention_learning",
    "mask",
    "added_reference",
    "optimizer",
    "precision",
)


def memory_signature(config: TrialConfig) -> Hashable:
    """Equal for trials that need the same memory.

    >>> small, again = TrialConfig(depth=56, learning_rate=0.1), TrialConfig(depth=56, learning_rate=0.2)
    >>> memory_signature(small) == memory_signature(again) != memory_signature(TrialConfig(depth=92))
    True
    """
    return (*(getattr(config, name) for name in _FIELDS), config.ema_decay > 0)
