"""The processes that train one trial together, and what they say to each other.

Each has the whole network and its share of every batch (:mod:`tune_rescon.data.loader`). The gradient of a
step is the sum over the shares, each weighted by its images, so that all of them take the same step; the sums
of the metrics run over all images. Batch norm alone sees a difference: each process normalises by its own
share's statistics, as micro-batches do (Goyal et al. 2017, section 2.3); before a validation their means are
taken over all processes, so that all judge the same network.

Every exchange begins with a vote, on the CPU: whoever could not get there (no memory, a fault) says so in its
next one, and all of them end their attempt there and then. Nobody is left waiting for a process that has
given up; only for one that has died, which whoever started the processes must watch for.

torch's process group carries it; it is there before training begins, and the CPU is among its devices.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tune_rescon.data.loader import WHOLE, Shard
from tune_rescon.training.memory import ran_out_of_memory

__all__ = [
    "SINGLE_PROCESS",
    "PeerFailedError",
    "PeerLostError",
    "PeerOutOfMemoryError",
    "ProcessGroup",
]


#: Bytes of a file sent at a time.
_CHUNK: Final = 64 << 20


class PeerOutOfMemoryError(torch.OutOfMemoryError):
    """Another process of the trial ran out of memory."""


class PeerFailedError(RuntimeError):
    """Another process of the trial has failed; the cause is raised there."""


class PeerLostError(RuntimeError):
    """Another process of the trial cannot be reached: it has died, or its machine has."""


class _Vote(enum.IntEnum):
    """The largest counts."""

    FINE = 0
    OUT_OF_MEMORY = 1
    FAILED = 2


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process among those of its trial. Alone, nothing is said and nothing costs anything.

    Every call but those of properties is one that all processes make, in the same order.

    Raises (every one of them):
        PeerOutOfMemoryError, PeerFailedError: another process said so.
        PeerLostError: another process cannot be reached.
    """

    share: Shard = WHOLE

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the trial's files and reports."""
        return self.share.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.share.count == 1

    def largest_share(self, images: int) -> int:
        """Of so many images, the most that one process has."""
        return Shard(count=self.share.count).of(images)

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """What all processes do together: after a vote, and with a broken connection called what it is."""
        if self.alone:
            yield
            return
        self._vote(_Vote.FINE)
        with _named():
            yield

    @contextmanager
    def telling(self, *alike: type[BaseException]) -> Iterator[None]:
        """Have the others know of an exception; of one that is ``alike``, all have it."""
        try:
            yield
        except BaseException as error:
            known = isinstance(error, (PeerOutOfMemoryError, PeerFailedError, PeerLostError, *alike))
            if not known and not self.alone:
                # The first exception is the one to raise, whatever has become of the others.
                with suppress(PeerOutOfMemoryError, PeerFailedError, PeerLostError):
                    self._vote(_vote_of(error))
            raise

    def most(self, value: float) -> float:
        """The largest of all processes' values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def total(self, value: float) -> float:
        """The sum of all processes' values."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def told(self, value: int) -> int:
        """The first process's value."""
        with self.exchange():
            return value if self.alone else int(_broadcast(torch.tensor([value])))

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *, images: int) -> None:
        """Replace the gradients of the mean over this process's ``images`` by those of the mean over all."""
        if self.alone:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        weight = gradients[0].new_full((1,), images)
        weighted = torch.cat([*(gradient.reshape(-1) for gradient in gradients), weight])
        sums, counted = weighted[:-1].mul_(images), weighted[-1]
        with self.exchange():
            dist.all_reduce(weighted)
        _unflatten(sums.div_(counted), gradients)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over the processes."""
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self.exchange():
            dist.all_reduce(flat)
        _unflatten(flat.div_(self.share.count), tensors)

    def share_file(self, path: Path) -> None:
        """Have every process's ``path`` be as the first one's: a copy, or no file. Each has its own path."""
        size = self.told(path.stat().st_size if self.first and path.exists() else -1)
        if size < 0:
            path.unlink(missing_ok=True)
        elif self.first:
            with path.open("rb") as file:
                for chunk in _chunks(size):
                    self._sent(torch.frombuffer(bytearray(file.read(chunk)), dtype=torch.uint8))
        else:
            with path.open("wb") as file:
                for chunk in _chunks(size):
                    file.write(self._sent(torch.empty(chunk, dtype=torch.uint8)).numpy().tobytes())

    def _sent(self, chunk_N: Tensor) -> Tensor:
        with self.exchange():
            return _broadcast(chunk_N)

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        if self.alone:
            return value
        found = torch.tensor([value], dtype=torch.float64)
        with self.exchange():
            dist.all_reduce(found, op=how)
        return float(found)

    def _vote(self, vote: _Vote) -> None:
        found = torch.tensor([int(vote)])
        with _named():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        if int(found) == _Vote.OUT_OF_MEMORY:
            raise PeerOutOfMemoryError("another process of the trial ran out of memory")
        if int(found) == _Vote.FAILED:
            raise PeerFailedError("another process of the trial has failed")


#: Of a trial in one process.
SINGLE_PROCESS: Final = ProcessGroup()


def _vote_of(error: BaseException) -> _Vote:
    is_memory = isinstance(error, RuntimeError) and ran_out_of_memory(error)
    return _Vote.OUT_OF_MEMORY if is_memory else _Vote.FAILED


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo's and NCCL's errors are plain RuntimeErrors; a failed allocation is the caller's business.
        if ran_out_of_memory(error):
            raise
        raise PeerLostError(f"another process of the trial cannot be reached: {error}") from error


def _broadcast(tensor: Tensor) -> Tensor:
    dist.broadcast(tensor, src=0)
    return tensor


def _chunks(size: int) -> Iterator[int]:
    return (min(_CHUNK, size - start) for start in range(0, size, _CHUNK))


def _unflatten(flat: Tensor, into: Sequence[Tensor]) -> None:
    for tensor, values in zip(into, torch.split(flat, [tensor.numel() for tensor in into]), strict=True):
        tensor.copy_(values.view(tensor.shape))
