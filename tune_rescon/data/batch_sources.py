"""Where the images of a batch come from: the mapped cache, now or ahead of the device, or the device itself.

All three give the same batches to the last bit; only when and where the bytes are copied differs.

Shape legend: B images of a batch, H = W stored side, C channels, N images of a split.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tune_rescon.data.dataset import ImageDataset, Split

__all__ = [
    "Ahead",
    "BatchSource",
    "Mapped",
    "Part",
    "Resident",
    "choose_supply",
    "fits",
    "made_ahead",
    "release",
]


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


def choose_supply(dataset: ImageDataset, part: Part, device: torch.device) -> BatchSource:
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


IntArray = npt.NDArray[np.int64]
#: images_BHWC as stored, uint8, and labels_B, int64.
Pair = tuple[Tensor, Tensor]
_Made = TypeVar("_Made")

#: Batches made before they are asked for. One hides a copy behind a step; the second, a step that was short.
_DEPTH = 2


class BatchSource(Protocol):
    """Gives the images of a split in any order asked for, as often as asked; keeps nothing between passes."""

    def __len__(self) -> int:
        """Images of the split."""

    def walk(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """The images at these positions of the split, ``batch_size`` at a time; the rest comes last."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """From the mapped cache, when asked: on a CPU that is a millisecond before a step of seconds."""

    split: Split

    def __len__(self) -> int:
        """Images of the split."""
        return len(self.split)

    def walk(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Copies, on the CPU."""
        return (_gather(self.split, chosen) for chosen in _cut(order, batch_size))


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """From the mapped cache by a thread of its own, while the device is at the batches before."""

    split: Split
    device: torch.device

    def __len__(self) -> int:
        """Images of the split."""
        return len(self.split)

    def walk(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Copies, on the device; what reads them there waits for them by itself.

        The thread is there as long as this pass is: a pass that is given up ends it.
        """
        upload = _Upload(self.device)
        makers = (partial(self._make, upload, chosen) for chosen in _cut(order, batch_size))
        with closing(made_ahead(makers, depth=_DEPTH)) as made:
            for images_BHWC, labels_B, copied in made:
                if copied is not None:
                    _hand_over((images_BHWC, labels_B), copied)
                yield images_BHWC, labels_B

    def _make(self, upload: _Upload, chosen: IntArray) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        return upload(*_gather(self.split, chosen))


@dataclass(frozen=True, kw_only=True, eq=False)
class Resident:
    """From the device's own memory."""

    images_NHWC: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        """Images of the split."""
        return len(self.labels_N)

    def walk(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Copies within the device; of the host's they need the order, once."""
        order_N = torch.from_numpy(order).to(self.labels_N.device)
        for start in range(0, len(order), batch_size):
            chosen_B = order_N[start : start + batch_size]
            yield self.images_NHWC.index_select(0, chosen_B), self.labels_N.index_select(0, chosen_B)


def made_ahead(makers: Iterable[Callable[[], _Made]], *, depth: int) -> Generator[_Made]:
    """What ``makers`` make, in order, each made by one other thread up to ``depth`` before it is asked for.

    A maker's exception comes out where its product would have. When the iterator is closed, the thread ends
    with the maker it is at.
    """
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        try:
            for make in makers:
                waiting.append(pool.submit(make))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Upload:
    """Copies to a device on a stream of their own, which a GPU carries out beside its computations."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _copying_stream(device) if device.type == "cuda" else None

    def __call__(
        self, images_BHWC: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        """The copies, and what tells that they are complete (None: they are)."""
        if self._stream is None:
            return images_BHWC.to(self._device), labels_B.to(self._device), None
        with torch.cuda.stream(self._stream):
            # Only from page-locked memory does a copy leave the host free and run beside kernels. torch keeps
            # those pages until the copy is done, and for the batches after.
            copies = [
                tensor.pin_memory().to(self._device, non_blocking=True) for tensor in (images_BHWC, labels_B)
            ]
            return copies[0], copies[1], self._stream.record_event()


@lru_cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all passes: torch keeps the memory of every stream apart, and gives none of it to another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _hand_over(tensors: Pair, copied: torch.cuda.Event) -> None:
    """Order what is queued on the current stream from now on after the copy, without waiting here."""
    stream = torch.cuda.current_stream(tensors[0].device)
    stream.wait_event(copied)
    for tensor in tensors:
        # The memory is the copying stream's: else it would be given to its next copy while still being read.
        tensor.record_stream(stream)


def _cut(order: IntArray, batch_size: int) -> Iterator[IntArray]:
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _gather(split: Split, chosen: IntArray) -> Pair:
    images_BHWC, labels_B = split.gather(chosen)
    return torch.from_numpy(images_BHWC), torch.from_numpy(labels_B)
