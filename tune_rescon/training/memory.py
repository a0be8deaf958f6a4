"""Memory of a training step: its peak, activation checkpointing, and a record of steps that did not fit."""

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
from typing import Any, Final

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from tune_rescon import __version__
from tune_rescon.atomic_write import atomic_write
from tune_rescon.config import TrialConfig
from tune_rescon.models import NetworkDescription, NetworkSpec
from tune_rescon.models.network import Mask, PreActivationUnit, ResNeXtUnit
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.microbatches import next_micro_batches

__all__ = [
    "OomHistory",
    "OomRecord",
    "OomRecordFile",
    "activation_checkpointing",
    "activations_recomputed",
    "available_memory",
    "initial_micro_batches",
    "memory_key",
    "merged",
    "peak_memory_mb",
    "ran_out_of_memory",
    "recompute_activations",
    "release_memory",
    "reset_peak_memory",
]


def activation_checkpointing(config: TrialConfig, spec: NetworkDescription) -> str:
    """Return a trial's ``checkpoint_activations``: ``"on"``, ``"auto"`` or ``"off"``.

    It is off for a network from elsewhere, because its modules may not give the same result and the same
    batch-norm statistics when they run twice.
    """
    return config.checkpoint_activations if isinstance(spec, NetworkSpec) else "off"


def recompute_activations(network: nn.Module) -> None:
    """Make every residual unit, and the head of every mask, recompute its activations in the backward pass.

    They are recomputed only if gradients are enabled. Module names stay unchanged, and so do copies and
    exports of the weights.
    """
    for module in _recomputed(network):
        # A bound method, unlike a closure, is deep-copied with the module and then bound to the copy.
        module.forward = types.MethodType(_forward, module)


@contextlib.contextmanager
def activations_recomputed(network: nn.Module) -> Iterator[None]:
    """Recompute ``network``'s activations within the context, as :func:`recompute_activations` does.

    Afterwards the network is unchanged, so it can be scripted, copied and pickled. The gradient may be
    computed outside the context.
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
    # torch restores the state of the random numbers, so that the recomputation drops the same paths.
    y_BCHW: Tensor = checkpoint(
        plain,
        x_BCHW,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _frozen_statistics(self)),
    )
    return y_BCHW


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norm's running statistics unchanged: the first computation has updated them already."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    held = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # The statistics must stay on. Otherwise torch would save fewer tensors for the gradient than the
        # first time, and raise.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


_log = logging.getLogger(__name__)

#: A memory of at least this share of another one counts as equally large, because the use of drivers and
#: contexts varies.
_EQUAL_SHARE: Final = 0.95

#: Seconds to wait for another process to release the lock; a write takes milliseconds.
_LOCK_TIMEOUT: Final = 10


@dataclass(frozen=True, kw_only=True, order=True)
class OomRecord:
    """A step that ran out of memory."""

    images: int
    """Images in its largest micro-batch."""
    available: int
    """Bytes that the process could have used when its trial began."""


def initial_micro_batches(images: int, available: int, known: Iterable[OomRecord]) -> int:
    """Return the smallest number of micro-batches that are not known to be too large for the memory.

    If even the smallest micro-batches are known to be too large, return their number. The trial then tries
    them, and fails.

    Args:
        images: images of a training batch.
        available: bytes the process can use.
        known: earlier steps that ran out of memory.

    >>> known = [OomRecord(images=64, available=1000)]
    >>> [initial_micro_batches(images, 1000, known) for images in (256, 128, 64, 63, 32)]
    [8, 4, 2, 1, 1]
    >>> initial_micro_batches(128, 2000, known)
    1
    """
    known = list(known)
    count: int = 1
    while any(_is_too_large(-(-images // count), available, record) for record in known):
        more = next_micro_batches(count, images=images)
        if more is None:
            break
        count = more
    return count


def _is_too_large(images: int, available: int, record: OomRecord) -> bool:
    return images >= record.images and record.available >= _EQUAL_SHARE * available


def merged(known: Iterable[OomRecord], new: OomRecord) -> list[OomRecord]:
    """Return ``known`` and ``new`` without the records that another record implies.

    >>> merged([OomRecord(images=64, available=1000)], OomRecord(images=32, available=2000))
    [OomRecord(images=32, available=2000)]
    >>> len(merged([OomRecord(images=64, available=1000)], OomRecord(images=32, available=500)))
    2
    """
    records = sorted({*known, new})
    return [one for one in records if not any(_implies(other, one) for other in records if other != one)]


def _implies(record: OomRecord, other: OomRecord) -> bool:
    return record.images <= other.images and record.available >= other.available


def memory_key(spec: NetworkDescription, placement: DeviceConfig, *settings: object) -> str:
    """Return a key of everything that decides how much memory an image needs.

    That is the network, its image size, the precision, the device, the versions, and the ``settings`` of the
    training. The optimiser and the averaged weights are left out: they are small beside a batch's
    activations.
    """
    name = torch.cuda.get_device_name(placement.device) if placement.device.type == "cuda" else "cpu"
    versions = [torch.__version__, __version__]
    parts = json.dumps([spec.to_dict(), placement.precision, name, versions, *settings], sort_keys=True)
    return f"{name} {blake2b(parts.encode(), digest_size=12).hexdigest()}"


class OomRecordFile:
    """A small JSON file, shared by the trials of a node, of the steps that ran out of memory, by their key.

    It only saves time, so it never fails a trial. If the file cannot be read, it counts as empty; if it
    cannot be written, the record is dropped. Reading needs no lock, because a new file replaces the old one
    as a whole.
    """

    def __init__(self, path: Path) -> None:
        """Use the file at ``path``, which need not exist."""
        self._path = path

    def known(self, key: str) -> list[OomRecord]:
        """Return the records of a :func:`memory_key`."""
        try:
            return [OomRecord(**values) for values in self._read().get(key, [])]
        except (TypeError, AttributeError):  # JSON of another format
            return []

    def add(self, key: str, record: OomRecord) -> None:
        """Add a record of a :func:`memory_key`."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_name(f"{self._path.name}.lock"), timeout=_LOCK_TIMEOUT):
                records = [asdict(known) for known in merged(self.known(key), record)]
                with atomic_write(self._path) as scratch:
                    scratch.write_text(json.dumps(self._read() | {key: records}, indent=1, sort_keys=True))
        except OSError as error:
            _log.warning("a step that ran out of memory could not be recorded in %s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text())
        except (OSError, ValueError):  # absent or damaged: the next write replaces it
            return {}
        return values if isinstance(values, dict) else {}


@dataclass(frozen=True, kw_only=True)
class OomHistory:
    """The steps of a network that ran out of memory on this node."""

    key: str
    """The network's :func:`memory_key`, and how it is trained."""
    available: int
    """Bytes that this process can use."""
    file: OomRecordFile | None
    """The node's records; None keeps nothing."""

    @classmethod
    def of(
        cls, config: TrialConfig, spec: NetworkDescription, placement: DeviceConfig, path: Path | None
    ) -> OomHistory:
        """Return the history of a trial's network, for steps that run eagerly and keep all activations.

        Args:
            config: the trial's configuration.
            spec: its network.
            placement: its device and precision.
            path: the node's file of records; None keeps nothing.
        """
        return cls(
            key=memory_key(spec, placement, config.compile),
            available=available_memory(placement.device),
            file=None if path is None else OomRecordFile(path),
        )

    def variant(self, *, captured: bool = False, recomputes: bool = False) -> OomHistory:
        """Return the history of steps that are captured as a CUDA graph, or recompute activations."""
        # "recorded" is the word of existing files for a captured step.
        ways = [way for way, is_used in (("recorded", captured), ("recomputes", recomputes)) if is_used]
        return dataclasses.replace(self, key=" ".join((self.key, *ways)))

    def micro_batches(self, images: int) -> int:
        """Return the number of micro-batches to start with for a batch of ``images``."""
        return initial_micro_batches(images, self.available, self.file.known(self.key) if self.file else ())

    def record_oom(self, images: int, micro_batches: int) -> None:
        """Record that a batch of ``images`` did not fit in ``micro_batches`` micro-batches."""
        if self.file is not None:
            self.file.add(self.key, OomRecord(images=-(-images // micro_batches), available=self.available))


#: torch's allocator raises OutOfMemoryError. Other allocations (by the driver, by cuBLAS, by cuDNN, whose
#: message differs before and from version 9, and by torch's own allocator on a CPU) raise a RuntimeError that
#: only its message identifies.
_OOM_MESSAGES: Final = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Return whether ``error`` is a lack of memory, which a smaller computation would have avoided.

    >>> ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    True
    >>> ran_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OOM_MESSAGES)


def release_memory() -> None:
    """Return unreferenced memory to the device and to the system.

    Lightning's reference cycles keep the network of a finished trial, and glibc keeps freed memory
    (half-width networks at 16 pixels: 60 MiB a trial).
    """
    # Imported here because it imports Lightning, which a reader of the records does not need.
    from pytorch_lightning.utilities.memory import garbage_collection_cuda

    garbage_collection_cuda()  # Python's collection, on any device, and then CUDA's cache
    if sys.platform == "linux":
        # Only glibc has malloc_trim; other C libraries keep less.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak that :func:`peak_memory_mb` returns.

    Without the reset the peak would include the trials that this worker process has trained before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the peak memory of this process's tensors on ``device``.

    It does not include the allocator's reserve, CUDA's context (some hundred megabytes), and other processes
    on the device, such as trials that share it.

    Returns:
        Million bytes; None if ``device`` is not a GPU.
    """
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process uses or can allocate on ``device``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
