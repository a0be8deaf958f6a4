"""A device's memory: how much there is, and whether it was too small for a step."""

from __future__ import annotations

import os
from typing import Final

import torch

__all__ = ["available_memory", "ran_out_of_memory"]

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


def available_memory(device: torch.device) -> int:
    """Bytes this process has or could have on ``device``, which is not what its neighbours there hold."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
