"""A device's memory: how much of it a trial took, and whether it was too small for a step."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["count_peak", "peak_memory_mb", "ran_out_of_memory"]

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
