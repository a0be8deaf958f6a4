"""Memory: how much there is, what a trial took, whether it was too small, and what trials have left."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

import torch
from pytorch_lightning.utilities.memory import garbage_collection_cuda

__all__ = ["available_memory", "count_peak", "peak_memory_mb", "ran_out_of_memory", "release_memory"]

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
