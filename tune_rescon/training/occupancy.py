"""What a network's training leaves of a GPU: how busy a step keeps it, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from tune_rescon.training.placement import Placement

__all__ = ["Occupancy", "busy_seconds", "measure_occupancy"]

#: Steps before the measurement (cuDNN tries its algorithms, the allocator grows, a recording's first replays
#: are waited for), and in it.
_WARM: Final = 5
_MEASURED: Final = 20


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """A GPU while one process trains on it and no other does."""

    device: str
    """Its name."""
    busy: float
    """Share of a step's time in which something ran on it, at most 1."""
    used: int
    """Bytes: weights, activations, the allocator's reserve and the process's CUDA context."""
    total: int
    """Bytes it has."""


def measure_occupancy(step: Callable[[], object], placement: Placement) -> Occupancy:
    """Run ``step`` some times on a CUDA device that nobody else uses.

    Raises:
        torch.OutOfMemoryError: not even one fits.
    """
    for _ in range(_WARM):
        step()
    torch.cuda.synchronize(placement.device)
    # Timed without the profiler, which makes the host slower and so the device idler.
    began = time.perf_counter()
    for _ in range(_MEASURED):
        step()
    torch.cuda.synchronize(placement.device)
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_MEASURED):
            step()
        torch.cuda.synchronize(placement.device)
    spans = (
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA"
    )
    free, total = torch.cuda.mem_get_info(placement.device)
    return Occupancy(
        device=torch.cuda.get_device_name(placement.device),
        busy=min(1.0, busy_seconds(spans) / seconds),
        used=total - free,
        total=total,
    )


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by at least one span (start, end).

    >>> busy_seconds([(0.0, 1.0), (0.5, 2.0), (3.0, 4.0)])
    3.0
    """
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
