"""Images that live on the device: whether they may, and the one copy that a process's trials share.

A process holds the splits of one dataset on a device: a reused worker trains trial after trial on it. They go
when another dataset comes, or when a trial finds no memory for its smallest micro-batch.

Shape legend: N images of a split, H = W stored side, C channels.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import torch

from tune_rescon.data.dataset import ImageDataset, Split
from tune_rescon.data.supply import Ahead, Mapped, Resident, Supply

__all__ = ["Part", "choose_supply", "fits", "release"]

Part = Literal["train", "val", "test"]

#: Of the device's free memory, at most one part in so many. A batch of half the size gives back more than
#: that, so images on the device hardly ever decide how large a micro-batch can be.
_LARGEST_PART: Final = 8

#: Bytes uploaded at a time: the host never holds a second copy of a split.
_CHUNK_BYTES: Final = 64 << 20


@dataclass
class _Held:
    """What of one dataset is on one device."""

    digest: str
    splits: dict[Part, Resident] = field(default_factory=dict)
    unwanted: bool = False
    """It was let go of for want of memory: this dataset does not come back."""


_held: dict[torch.device, _Held] = {}
_lock = threading.Lock()


def fits(needed: int, free: int) -> bool:
    """Whether ``needed`` bytes of images may live on a device with ``free`` bytes free.

    >>> gib = 2**30
    >>> fits(gib, 8 * gib), fits(gib + 1, 8 * gib)
    (True, False)
    """
    return needed * _LARGEST_PART <= free


def choose_supply(dataset: ImageDataset, part: Part, device: torch.device) -> Supply:
    """Where the batches of a trial on ``device`` come from.

    A CPU's memory is where the mapped cache is already. A GPU is given the split, unless it has it; where
    that does not fit, batches are copied ahead.
    """
    split: Split = getattr(dataset, part)
    if not has_own_memory(device):
        return Mapped(split=split)
    device = _numbered(device)
    held = _resident(dataset.digest, part, split, device)
    return Ahead(split=split, device=device) if held is None else held


def release(device: torch.device) -> bool:
    """Let go of the images on ``device`` and do without them; whether there were any.

    Their memory is free once the loaders that read them are gone.
    """
    with _lock:
        held = _held.get(_numbered(device))
        if held is None or not held.splits:
            return False
        held.splits.clear()
        held.unwanted = True
        return True


def _resident(digest: str, part: Part, split: Split, device: torch.device) -> Resident | None:
    # Two trials in two threads of a notebook share the copy; the second waits for the first one's.
    with _lock:
        held = _held.get(device)
        if held is None or held.digest != digest:
            held = _held[device] = _Held(digest=digest)
        if part not in held.splits and not held.unwanted and fits(_bytes_of(split), free_memory(device)):
            try:
                held.splits[part] = _upload(split, device)
            except torch.OutOfMemoryError:  # another process was faster
                held.unwanted = True
        return held.splits.get(part)


def has_own_memory(device: torch.device) -> bool:
    """Whether images must be copied before ``device`` can compute on them."""
    return device.type == "cuda"


def free_memory(device: torch.device) -> int:
    """Bytes this process could still have on a GPU: the device's, and what torch holds in reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _numbered(device: torch.device) -> torch.device:
    """``cuda`` and ``cuda:0`` are one device, and must be one key."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _bytes_of(split: Split) -> int:
    return len(split) * math.prod(split.images_NHWC.shape[1:])


def _upload(split: Split, device: torch.device) -> Resident:
    shape = (len(split), *split.images_NHWC.shape[1:])
    images_NHWC = torch.empty(shape, dtype=torch.uint8, device=device)
    rows = max(1, _CHUNK_BYTES // math.prod(shape[1:]))
    for start in range(0, len(split), rows):
        chosen = np.arange(start, min(start + rows, len(split)))
        images_NHWC[start : start + rows].copy_(torch.from_numpy(split.gather(chosen)[0]))
    return Resident(images_NHWC=images_NHWC, labels_N=torch.from_numpy(split.labels_N).to(device))
