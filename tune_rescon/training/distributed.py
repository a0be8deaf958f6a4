"""The processes that train one trial together, and their collective operations.

Each process has the whole network and its shard of every batch (:mod:`tune_rescon.data.batch_sources`). The
gradient of a step is the sum over the shards, each weighted by its images, so that all processes take the
same step. The metrics are summed over all images. Only batch norm differs: each process normalises by the
statistics of its own shard, as micro-batches do (Goyal et al. 2017, section 2.3). Before a validation these
statistics are averaged over all processes, so that all of them evaluate the same network.

Every collective begins with a vote on the CPU. A process that has failed (no CUDA graph, out of memory, an
error) votes that it has, and all processes then end their attempt at this point. So no process waits for one
that has failed. A process can still wait for one that has died; the program that started the processes must
watch for that.

The collectives use torch's default process group. It must exist before the training begins, with the CPU
among its devices.
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

from tune_rescon.data.batch_sources import WHOLE, Shard
from tune_rescon.training.cuda_graphs import CaptureError
from tune_rescon.training.memory import ran_out_of_memory

__all__ = [
    "SINGLE_PROCESS",
    "PeerCaptureError",
    "PeerFailedError",
    "PeerLostError",
    "PeerOutOfMemoryError",
    "ProcessGroup",
]


#: Bytes of a file that are sent at a time.
_CHUNK: Final = 64 << 20


class PeerCaptureError(CaptureError):
    """Another process of the trial cannot capture its steps as a CUDA graph."""


class PeerOutOfMemoryError(torch.OutOfMemoryError):
    """Another process of the trial ran out of memory."""


class PeerFailedError(RuntimeError):
    """Another process of the trial has failed; that process raises the cause."""


class PeerLostError(RuntimeError):
    """Another process of the trial cannot be reached: the process or its machine has died."""


#: The errors that tell this process about another one, which knows of its failure already.
_PEER_ERRORS: Final = (PeerCaptureError, PeerOutOfMemoryError, PeerFailedError, PeerLostError)


class _Vote(enum.IntEnum):
    """A process's vote; the largest one decides."""

    FINE = 0
    NO_CAPTURE = 1
    OUT_OF_MEMORY = 2
    FAILED = 3


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes of a trial, seen from this one. With a single process, every call returns at once.

    All processes must make every call, except to properties, in the same order.

    Raises (every call):
        PeerCaptureError, PeerOutOfMemoryError, PeerFailedError: another process reported that failure.
        PeerLostError: another process cannot be reached.
    """

    shard: Shard = WHOLE
    """The shard of every batch that this process trains on."""

    @property
    def first(self) -> bool:
        """True if this process writes the trial's files and reports."""
        return self.shard.rank == 0

    @property
    def alone(self) -> bool:
        """True if the trial has no other processes."""
        return self.shard.world_size == 1

    def largest_shard(self, images: int) -> int:
        """Return the number of ``images`` that the process with the largest shard has."""
        return Shard(world_size=self.shard.world_size).size(images)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Run a block that all processes run together, after a vote.

        A broken connection raises PeerLostError instead of torch's error.
        """
        if self.alone:
            yield
            return
        self._vote(_Vote.FINE)
        with _connection_errors():
            yield

    @contextmanager
    def propagate_errors(self, *raised_by_all: type[BaseException]) -> Iterator[None]:
        """Make the other processes fail too if the block raises.

        Args:
            raised_by_all: types of exceptions that every process raises at the same point. The other
                processes need no message about them.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, (*_PEER_ERRORS, *raised_by_all)) and not self.alone:
                # The exception of the block is raised, not one from the vote.
                with suppress(*_PEER_ERRORS):
                    self._vote(_vote_of(error))
            raise

    def all_reduce_max(self, value: float) -> float:
        """Return the largest of all processes' values."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def all_reduce_sum(self, value: float) -> float:
        """Return the sum of all processes' values."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def broadcast(self, value: int) -> int:
        """Return the first process's value."""
        with self.collective():
            return value if self.alone else int(_broadcast(torch.tensor([value])))

    def sum_gradients(self, parameters: Iterable[nn.Parameter], *, images: int) -> None:
        """Replace this process's gradients by those of the mean loss over all processes' images.

        Args:
            parameters: their gradients must be those of the mean loss over this process's images.
            images: number of images in this process's shard of the batch.
        """
        if self.alone:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        weight = gradients[0].new_full((1,), images)
        weighted = torch.cat([*(gradient.reshape(-1) for gradient in gradients), weight])
        sums, counted = weighted[:-1].mul_(images), weighted[-1]
        with self.collective():
            dist.all_reduce(weighted)
        _unflatten(sums.div_(counted), gradients)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their mean over all processes."""
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self.collective():
            dist.all_reduce(flat)
        _unflatten(flat.div_(self.shard.world_size), tensors)

    def broadcast_file(self, path: Path) -> None:
        """Copy the first process's file to every process, or delete the others' if the first one has none.

        Args:
            path: the path of the file in this process.
        """
        size = self.broadcast(path.stat().st_size if self.first and path.exists() else -1)
        if size < 0:
            path.unlink(missing_ok=True)
        elif self.first:
            with path.open("rb") as file:
                for chunk in _chunks(size):
                    self._broadcast_chunk(torch.frombuffer(bytearray(file.read(chunk)), dtype=torch.uint8))
        else:
            with path.open("wb") as file:
                for chunk in _chunks(size):
                    file.write(self._broadcast_chunk(torch.empty(chunk, dtype=torch.uint8)).numpy().tobytes())

    def _broadcast_chunk(self, chunk_N: Tensor) -> Tensor:
        with self.collective():
            return _broadcast(chunk_N)

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        if self.alone:
            return value
        result = torch.tensor([value], dtype=torch.float64)
        with self.collective():
            dist.all_reduce(result, op=how)
        return float(result)

    def _vote(self, vote: _Vote) -> None:
        largest = torch.tensor([int(vote)])
        with _connection_errors():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if int(largest) == _Vote.NO_CAPTURE:
            raise PeerCaptureError("another process of the trial cannot capture its steps")
        if int(largest) == _Vote.OUT_OF_MEMORY:
            raise PeerOutOfMemoryError("another process of the trial ran out of memory")
        if int(largest) == _Vote.FAILED:
            raise PeerFailedError("another process of the trial has failed")


#: The group of a trial that runs in one process.
SINGLE_PROCESS: Final = ProcessGroup()


def _vote_of(error: BaseException) -> _Vote:
    if isinstance(error, CaptureError):
        return _Vote.NO_CAPTURE
    is_memory = isinstance(error, RuntimeError) and ran_out_of_memory(error)
    return _Vote.OUT_OF_MEMORY if is_memory else _Vote.FAILED


@contextmanager
def _connection_errors() -> Iterator[None]:
    """Raise PeerLostError for an error of the block's collective."""
    try:
        yield
    except RuntimeError as error:
        # gloo and NCCL raise plain RuntimeErrors; a failed allocation is left to the caller.
        if ran_out_of_memory(error):
            raise
        raise PeerLostError(f"another process of the trial cannot be reached: {error}") from error


def _broadcast(tensor: Tensor) -> Tensor:
    dist.broadcast(tensor, src=0)
    return tensor


def _chunks(size: int) -> Iterator[int]:
    return (min(_CHUNK, size - start) for start in range(0, size, _CHUNK))


def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the values of a flat tensor into ``tensors``."""
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, values in zip(tensors, torch.split(flat, sizes), strict=True):
        tensor.copy_(values.view(tensor.shape))
