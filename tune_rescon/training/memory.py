"""Whether a device's memory was too small for a step."""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["ran_out_of_memory"]

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
