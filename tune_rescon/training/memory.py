"""Memory of a training step: what it takes, and what is tried when a batch does not fit."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import os
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tune_rescon import __version__
from tune_rescon.config import TrialConfig
from tune_rescon.models import NetworkSpec
from tune_rescon.models.network import Mask, PreActivationUnit, ResNeXtUnit
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.microbatches import twice_as_many

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "OomRecord",
    "OomRecordFile",
    "Shape",
    "activations_recomputed",
    "available_memory",
    "count_peak",
    "merged",
    "peak_memory_mb",
    "ran_out_of_memory",
    "recompute_activations",
    "release_memory",
    "shape_key",
    "starting_pieces",
]


def recompute_activations(network: nn.Module) -> None:
    """Have every residual unit, and the end of every mask, computed again for its gradient.

    Only where gradients are wanted. Names stay as they are, and so does what a copy or an export of the
    weights holds.
    """
    for module in _recomputed(network):
        # A bound method, not a closure: it comes along in a deep copy, bound to the copy.
        module.forward = types.MethodType(_forward, module)


@contextlib.contextmanager
def activations_recomputed(network: nn.Module) -> Iterator[None]:
    """Within it ``network`` runs as after :func:`recompute_activations`; afterwards it is as it was.

    The gradient may be computed outside. A network can be scripted, copied and pickled between its runs.
    """
    recompute_activations(network)
    try:
        yield
    finally:
        for module in _recomputed(network):
            del module.forward


def _recomputed(network: nn.Module) -> Iterator[nn.Module]:
    for module in network.modules():
        if isinstance(module, PreActivationUnit | ResNeXtUnit):
            yield module
        elif isinstance(module, Mask):
            yield module.head


def _forward(self: nn.Module, x_BCHW: Tensor) -> Tensor:
    plain = types.MethodType(type(self).forward, self)
    if not torch.is_grad_enabled():
        unchanged_BCHW: Tensor = plain(x_BCHW)
        return unchanged_BCHW
    # torch keeps the state of the random numbers by itself: dropped paths are the same ones again.
    y_BCHW: Tensor = checkpoint(
        plain,
        x_BCHW,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_held(self)),
    )
    return y_BCHW


@contextlib.contextmanager
def _statistics_held(module: nn.Module) -> Iterator[None]:
    """Within it batch norm moves its running statistics by nothing: the first computation has moved them."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Without statistics torch would save fewer tensors for the gradient than it did the first time.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


_log = logging.getLogger(__name__)

#: Of two memories the smaller counts as large as the other if no more than this share is missing: drivers and
#: contexts take a little more or less each time.
_AS_MUCH: Final = 0.95

#: Seconds to wait for another process that writes; it takes milliseconds.
_PATIENCE: Final = 10


@dataclass(frozen=True, kw_only=True, order=True)
class OomRecord:
    """A step that ran out of memory."""

    images: int
    """Of its largest micro-batch."""
    available: int
    """Bytes the process could have had when its trial began."""


def starting_pieces(images: int, available: int, known: Iterable[OomRecord]) -> int:
    """Micro-batches to start with: the fewest of which none is known to be too large for ``available`` bytes.

    Where the smallest ones are too, those: the trial then fails on its own account.

    >>> known = [OomRecord(images=64, available=1000)]
    >>> [starting_pieces(images, 1000, known) for images in (256, 128, 64, 63, 32)]
    [8, 4, 2, 1, 1]
    >>> starting_pieces(128, 2000, known)
    1
    """
    known = list(known)
    count: int = 1
    while any(_is_hopeless(-(-images // count), available, overrun) for overrun in known):
        finer = twice_as_many(count, images=images)
        if finer is None:
            break
        count = finer
    return count


def _is_hopeless(images: int, available: int, overrun: OomRecord) -> bool:
    return images >= overrun.images and overrun.available >= _AS_MUCH * available


def merged(known: Iterable[OomRecord], new: OomRecord) -> list[OomRecord]:
    """``known`` and ``new`` without what another of them says already.

    >>> merged([OomRecord(images=64, available=1000)], OomRecord(images=32, available=2000))
    [OomRecord(images=32, available=2000)]
    >>> len(merged([OomRecord(images=64, available=1000)], OomRecord(images=32, available=500)))
    2
    """
    every = sorted({*known, new})
    return [one for one in every if not any(_says_more(other, one) for other in every if other != one)]


def _says_more(one: OomRecord, other: OomRecord) -> bool:
    return one.images <= other.images and one.available >= other.available


def shape_key(spec: NetworkSpec, placement: DeviceConfig, *ways: object) -> str:
    """What decides how much memory an image takes: network, image size, precision, device, and the versions.

    ``ways``: what else does, of how it is trained.

    Optimiser and averaged weights count for little beside a batch's activations.
    """
    name = torch.cuda.get_device_name(placement.device) if placement.device.type == "cuda" else "cpu"
    versions = [torch.__version__, __version__]
    parts = json.dumps([spec.to_dict(), placement.precision, name, versions, *ways], sort_keys=True)
    return f"{name} {blake2b(parts.encode(), digest_size=12).hexdigest()}"


class OomRecordFile:
    """A small JSON file that the trials of a node share: for each shape, its overruns.

    It only saves time, so it never fails a trial: one that cannot be read knows nothing, one that cannot be
    written keeps nothing. Reading needs no lock: a new file takes the old one's place whole.
    """

    def __init__(self, path: Path) -> None:
        """``path`` need not exist."""
        self._path = path

    def known(self, key: str) -> list[OomRecord]:
        """The overruns of a shape."""
        try:
            return [OomRecord(**values) for values in self._read().get(key, [])]
        except (TypeError, AttributeError):  # JSON, but not ours
            return []

    def add(self, key: str, overrun: OomRecord) -> None:
        """Remember one."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=_PATIENCE):
                everything = self._read() | {key: [asdict(one) for one in merged(self.known(key), overrun)]}
                partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
                partial.write_text(json.dumps(everything, indent=1, sort_keys=True))
                partial.replace(self._path)
        except OSError as error:
            _log.warning("what ran out of memory could not be remembered in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text())
        except (OSError, ValueError):  # none yet, or damaged: it is written anew
            return {}
        return values if isinstance(values, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A trial's shape, the bytes it could have, and the node's file of overruns (None: nothing is kept)."""

    key: str
    available: int
    file: OomRecordFile | None

    @classmethod
    def of(cls, config: TrialConfig, spec: NetworkSpec, placement: DeviceConfig, path: Path | None) -> Shape:
        """Of a trial about to begin, as it is configured to train."""
        return cls(
            key=shape_key(spec, placement, config.compile),
            available=available_memory(placement.device),
            file=None if path is None else OomRecordFile(path),
        )

    def when(self, *, recorded: bool = False, recomputes: bool = False) -> Shape:
        """The same, trained in another way: from a CUDA graph, or with activations computed again."""
        ways = [way for way, taken in (("recorded", recorded), ("recomputes", recomputes)) if taken]
        return dataclasses.replace(self, key=" ".join((self.key, *ways)))

    def pieces(self, images: int) -> int:
        """Micro-batches to start with for a batch of ``images``."""
        return starting_pieces(images, self.available, self.file.known(self.key) if self.file else ())

    def ran_out(self, images: int, pieces: int) -> None:
        """A batch of ``images`` did not fit in so many micro-batches."""
        if self.file is not None:
            self.file.add(self.key, OomRecord(images=-(-images // pieces), available=self.available))


#: torch's allocator raises OutOfMemoryError. What allocates beside it (the driver, cuBLAS, cuDNN before and
#: since version 9, torch's own allocator on a CPU) raises a RuntimeError that can be known by its words only.
_WORDS: Final = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether less to compute at once would have prevented ``error``.

    >>> ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    True
    >>> ran_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _WORDS)


def release_memory() -> None:
    """Give back what nobody refers to any more, to the device and to the system.

    A trial that is over leaves two things to its process. Its network, in Lightning's reference cycles. And
    freed memory, which glibc keeps (half-width networks at 16 pixels: 60 MiB a trial).
    """
    # Imported here: it takes Lightning, which who only reads the notes of a node does without.
    from pytorch_lightning.utilities.memory import garbage_collection_cuda

    garbage_collection_cuda()  # Python's collection, on any device, and then CUDA's cache
    if sys.platform == "linux":
        # glibc's alone; another C library keeps less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def count_peak(device: torch.device) -> None:
    """Count :func:`peak_memory_mb` from now on: a worker's process has trained other trials before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most this process's tensors have held on ``device`` at once, million bytes; None if it is no GPU.

    What the allocator keeps in reserve and CUDA's own context (some hundred megabytes) come on top of it.
    Other processes on the device, trials that share it among them, are not in it.
    """
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def available_memory(device: torch.device) -> int:
    """Bytes this process has or could have on ``device``, which is not what its neighbours there hold."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
