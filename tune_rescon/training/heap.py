"""The C library's heap while a network trains on a CPU.

glibc takes every block of 32 MB or more from the kernel and gives it back when it is freed, as it does the
heap's end. A feature map of that size (64 images x 128 channels x 32 x 32) is then made of fresh pages each
time, and the kernel's clearing them costs more than what is computed in them. Here freed memory stays with
the process while it trains; :func:`~tune_rescon.training.memory.release_memory` gives it back.

Other C libraries have no such switch: there nothing changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Final

__all__ = ["freed_memory_kept"]

#: mallopt's numbers, from glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3

#: Blocks up to here (bytes, an int's largest) come from the heap.
_LARGEST: Final = 2**31 - 1

#: glibc adjusts both as blocks are freed, and cannot be asked; these are the ends it adjusts them to.
_ADJUSTED: Final = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it, what the process frees stays its own. For all threads; blocks in use are not touched."""
    # glibc's alone.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, -1)  # mallopt(3): -1 never trims
    try:
        yield
    finally:
        for option, size in _ADJUSTED.items():
            mallopt(option, size)
