"""Which trials cannot fit into memory, because one with the same network did not."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from tune_rescon.config import TrialConfig
from tune_rescon.training.microbatches import smallest_piece

__all__ = ["memory_signature"]

#: What decides, with the size of a piece, the memory of a trial whose batches are cut as small as can be.
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
    "compile",
    "cuda_graphs",
    "checkpoint_activations",
)


def memory_signature(config: TrialConfig) -> Hashable:
    """Equal for trials that need the same memory.

    >>> small, again = TrialConfig(depth=56, learning_rate=0.1), TrialConfig(depth=56, learning_rate=0.2)
    >>> memory_signature(small) == memory_signature(again) != memory_signature(TrialConfig(depth=92))
    True
    """
    fields = (getattr(config, name) for name in _FIELDS)
    return (*fields, config.ema_decay > 0, smallest_piece(config.batch_size))
