"""Sources of batches: the mapped cache on demand, the mapped cache with prefetching, or the device's memory.

If several processes train one trial, each of them reads its :class:`Shard` of every batch. All three sources
return bitwise identical batches. They differ only in when and where the bytes are copied.

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
    "WHOLE",
    "BatchSource",
    "DeviceSource",
    "MemmapSource",
    "PrefetchSource",
    "Shard",
    "SplitName",
    "choose_source",
    "fits",
    "prefetched",
    "release",
]


IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The shard of every batch for one process. The shards are disjoint, and their union is the batch."""

    rank: int = 0
    """Rank of the process, counted from 0."""
    world_size: int = 1
    """Number of processes of the trial."""

    def __post_init__(self) -> None:
        """Check that the rank is valid."""
        assert 0 <= self.rank < self.world_size, f"rank {self.rank} of {self.world_size}"

    def size(self, images: int) -> int:
        """Return how many of ``images`` belong to this shard.

        The sizes of the shards differ by at most one; the first shards are the larger ones.

        >>> [Shard(rank=rank, world_size=3).size(8) for rank in range(3)]
        [3, 3, 2]
        """
        return images // self.world_size + (self.rank < images % self.world_size)

    def select(self, order: IntArray, batch_size: int) -> tuple[IntArray, int]:
        """Return this shard of each batch of ``order``, concatenated, and the number of images in one shard.

        If the last batch is shorter, its shard is shorter or empty.

        >>> Shard(rank=1, world_size=2).select(np.arange(8), 3)
        (array([2, 5, 7]), 1)
        """
        if self.world_size == 1:
            return order, batch_size
        shards = [np.array_split(batch, self.world_size)[self.rank] for batch in _cut(order, batch_size)]
        return np.concatenate([order[:0], *shards]), max(1, self.size(min(batch_size, len(order))))


#: The shard of a trial with one process.
WHOLE: Final = Shard()


SplitName = Literal["train", "val", "test"]

#: A split may use 1 / ``_FREE_MEMORY_PART`` of the device's free memory. Halving the micro-batch frees more
#: than that, so images on the device hardly ever limit the size of a micro-batch.
_FREE_MEMORY_PART: Final = 8

#: Bytes uploaded at a time, so that the host never holds a second copy of a split.
_CHUNK_BYTES: Final = 64 << 20


@dataclass
class _DeviceSplits:
    """The splits of one dataset that are on one device."""

    digest: str
    splits: dict[SplitName, DeviceSource] = field(default_factory=dict)
    is_released: bool = False
    """True after the images were released because memory was short: the dataset is not uploaded again."""


_held: dict[torch.device, _DeviceSplits] = {}
_lock = threading.Lock()


def fits(needed: int, free: int) -> bool:
    """Return whether ``needed`` bytes of images may be kept on a device with ``free`` bytes of free memory.

    >>> gib = 2**30
    >>> fits(gib, 8 * gib), fits(gib + 1, 8 * gib)
    (True, False)
    """
    return needed * _FREE_MEMORY_PART <= free


def choose_source(dataset: ImageDataset, name: SplitName, device: torch.device) -> BatchSource:
    """Return the source of the batches of a trial on ``device``.

    On a CPU the mapped cache is already in the right memory. On a GPU the split is uploaded, unless it is
    there already. If the split does not fit, batches are prefetched.

    Args:
        dataset: The open dataset.
        name: The split to read.
        device: The device of the trial.
    """
    split: Split = getattr(dataset, name)
    if not has_own_memory(device):
        return MemmapSource(split=split)
    device = _with_index(device)
    source = _on_device(dataset.digest, name, split, device)
    return PrefetchSource(split=split, device=device) if source is None else source


def release(device: torch.device) -> bool:
    """Release the images on ``device`` and do not upload them again; return whether there were any.

    Their memory becomes free once the loaders that read them are deleted.
    """
    with _lock:
        held = _held.get(_with_index(device))
        if held is None or not held.splits:
            return False
        held.splits.clear()
        held.is_released = True
        return True


def _on_device(digest: str, name: SplitName, split: Split, device: torch.device) -> DeviceSource | None:
    """Return the source on the device, after an upload if it is needed and fits; None if it does not fit."""
    # Two trials in two threads of a notebook share the copy; the second waits for the upload of the first.
    with _lock:
        held = _held.get(device)
        if held is None or held.digest != digest:
            held = _held[device] = _DeviceSplits(digest=digest)
        if name not in held.splits and not held.is_released and fits(_bytes_of(split), free_memory(device)):
            try:
                held.splits[name] = _upload(split, device)
            except torch.OutOfMemoryError:  # another process allocated the memory first
                held.is_released = True
        return held.splits.get(name)


def has_own_memory(device: torch.device) -> bool:
    """Return whether images must be copied before ``device`` can compute on them."""
    return device.type == "cuda"


def free_memory(device: torch.device) -> int:
    """Return the bytes this process can still allocate on a GPU: free memory plus torch's unused reserve."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _with_index(device: torch.device) -> torch.device:
    """Return the device with its index: ``cuda`` and ``cuda:0`` are one device and must be one key."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _bytes_of(split: Split) -> int:
    return len(split) * math.prod(split.images_NHWC.shape[1:])


def _upload(split: Split, device: torch.device) -> DeviceSource:
    shape = (len(split), *split.images_NHWC.shape[1:])
    images_NHWC = torch.empty(shape, dtype=torch.uint8, device=device)
    rows = max(1, _CHUNK_BYTES // math.prod(shape[1:]))
    for start in range(0, len(split), rows):
        chosen = np.arange(start, min(start + rows, len(split)))
        images_NHWC[start : start + rows].copy_(torch.from_numpy(split.gather(chosen)[0]))
    return DeviceSource(images_NHWC=images_NHWC, labels_N=torch.from_numpy(split.labels_N).to(device))


#: images_BHWC as stored (uint8), and labels_B (int64).
Pair = tuple[Tensor, Tensor]
_Result = TypeVar("_Result")

#: Number of prefetched batches. The first hides a copy behind a step; the second covers a short step.
_DEPTH = 2


class BatchSource(Protocol):
    """A source of the images of a split, in any order and for any number of passes, without state."""

    def __len__(self) -> int:
        """Return the number of images of the split."""

    def batches(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Yield the images at these positions, ``batch_size`` at a time; the last batch may be smaller."""


@dataclass(frozen=True, kw_only=True)
class MemmapSource:
    """A source that reads the mapped cache on demand. On a CPU that is fast compared with a step."""

    split: Split

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return len(self.split)

    def batches(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Yield copies on the CPU."""
        return (_gather(self.split, chosen) for chosen in _cut(order, batch_size))


@dataclass(frozen=True, kw_only=True)
class PrefetchSource:
    """A source that reads the mapped cache in a separate thread while the device runs earlier batches."""

    split: Split
    device: torch.device

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return len(self.split)

    def batches(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Yield copies on the device. Operations on the copies wait until the copies are complete.

        The thread runs as long as this pass; closing the iterator early stops the thread.
        """
        upload = _Upload(self.device)
        calls = (partial(self._load, upload, chosen) for chosen in _cut(order, batch_size))
        with closing(prefetched(calls, depth=_DEPTH)) as batches:
            for images_BHWC, labels_B, copied in batches:
                if copied is not None:
                    _wait_for_copy((images_BHWC, labels_B), copied)
                yield images_BHWC, labels_B

    def _load(self, upload: _Upload, chosen: IntArray) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        return upload(*_gather(self.split, chosen))


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceSource:
    """A source that reads from the memory of the device."""

    images_NHWC: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        """Return the number of images of the split."""
        return len(self.labels_N)

    def batches(self, order: IntArray, batch_size: int) -> Iterator[Pair]:
        """Yield copies made within the device. Only the order is copied from the host, once per pass."""
        order_N = torch.from_numpy(order).to(self.labels_N.device)
        for start in range(0, len(order), batch_size):
            chosen_B = order_N[start : start + batch_size]
            yield self.images_NHWC.index_select(0, chosen_B), self.labels_N.index_select(0, chosen_B)


def prefetched(calls: Iterable[Callable[[], _Result]], *, depth: int) -> Generator[_Result]:
    """Yield the results of ``calls`` in order; another thread computes them up to ``depth`` items ahead.

    An exception of a call is raised at the position of its result. When the iterator is closed, the thread
    stops after the running call.
    """
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(call))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Upload:
    """Copies batches to a device on a separate stream, so that a GPU copies while it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _copying_stream(device) if device.type == "cuda" else None

    def __call__(
        self, images_BHWC: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensor, torch.cuda.Event | None]:
        """Return the copies, and an event that marks their completion (None: they are complete)."""
        if self._stream is None:
            return images_BHWC.to(self._device), labels_B.to(self._device), None
        with torch.cuda.stream(self._stream):
            # Only a copy from page-locked memory is asynchronous and runs beside kernels. torch keeps these
            # pages until the copy is complete, and reuses them for later batches.
            copies = [
                tensor.pin_memory().to(self._device, non_blocking=True) for tensor in (images_BHWC, labels_B)
            ]
            return copies[0], copies[1], self._stream.record_event()


@lru_cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all passes, because torch never reuses the memory of one stream for another."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _wait_for_copy(tensors: Pair, copied: torch.cuda.Event) -> None:
    """Make later work on the current stream wait for the copy, without blocking the host."""
    stream = torch.cuda.current_stream(tensors[0].device)
    stream.wait_event(copied)
    for tensor in tensors:
        # The copying stream owns the memory. Without this call, its next copy could overwrite memory that is
        # still being read.
        tensor.record_stream(stream)


def _cut(order: IntArray, batch_size: int) -> Iterator[IntArray]:
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def _gather(split: Split, chosen: IntArray) -> Pair:
    images_BHWC, labels_B = split.gather(chosen)
    return torch.from_numpy(images_BHWC), torch.from_numpy(labels_B)
