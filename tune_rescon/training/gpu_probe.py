"""What a network's training leaves of a GPU: how busy a step keeps it, and how much memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.compile import choose_compiling
from tune_rescon.training.cuda_graphs import HangWatchdog, choose_recorder
from tune_rescon.training.device import DeviceConfig, place
from tune_rescon.training.module import TrialModule

__all__ = [
    "Occupancy",
    "build_step",
    "busy_seconds",
    "measure_occupancy",
    "step_of",
]


#: The published tables of these networks at 32 pixels are CIFAR-10's.
CLASSES = 10


def build_step(
    preset: str,
    *,
    batch_size: int,
    device: str,
    precision: str = "auto",
    compiling: str = "off",
    checkpoint_activations: str = "auto",
    cuda_graphs: str = "auto",
) -> Callable[[], Tensor]:
    """A callable that runs one full training step and returns its loss, on the device and not waited for.

    Images of the preset's nominal size lie on the device; forward, loss, backward, optimiser and schedule
    are those of :func:`tune_rescon.training.train_trial` at the default recipe and ``precision``;
    ``compiling`` is its ``compile``. On a GPU the first call records the step. Its metrics are counted, as in
    training. The process's switches (TF32, cuDNN's autotuner, the heap) hold during a call only.

    Raises:
        ConfigError: no such precision or ``compiling``.
        NetworkError: no such preset.
        ResourceError: no such device ("auto", "cpu", "cuda").
    """
    config = TrialConfig(
        preset=preset,
        batch_size=batch_size,
        precision=precision,
        compile=compiling,
        checkpoint_activations=checkpoint_activations,
        cuda_graphs=cuda_graphs,
    )
    return step_of(config, place(device, precision=config.precision), classes=CLASSES, in_channels=3)


def step_of(
    config: TrialConfig,
    placement: DeviceConfig,
    *,
    classes: int,
    in_channels: int,
    watch: HangWatchdog | None = None,
) -> Callable[[], Tensor]:
    """The same of any trial, for images of ``in_channels`` channels; recorded under ``watch``, if any.

    Raises:
        NetworkError: there is no such network.
    """
    spec = resolve_network(config, classes=classes, in_channels=in_channels)
    recomputes = config.checkpoint_activations == "on"
    compiling, _ = choose_compiling(config.compile, placement.device, recomputes=recomputes)
    module = TrialModule(
        build_from_spec(spec),
        config,
        classes=classes,
        epochs=1,
        steps_per_epoch=10**6,
        placement=placement,
        compiling=compiling,
        recomputes=recomputes,
        recorder=choose_recorder(config, placement, micro_batches=1, recomputes=recomputes, watch=watch),
    ).to(placement.device)
    optimizer, scheduler = module.optimizer_and_scheduler()
    shape = (config.batch_size, in_channels, spec.image_size, spec.image_size)
    images_BCHW = torch.randn(shape, device=placement.device)
    labels_B = torch.randint(classes, (config.batch_size,), device=placement.device)

    def step() -> Tensor:
        with placement.active():
            optimizer.zero_grad()
            loss = module.training_step((images_BCHW, labels_B))
            module.backward(loss)
            optimizer.step()
            scheduler.step()
        return loss.detach()

    return step


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


def measure_occupancy(step: Callable[[], object], placement: DeviceConfig) -> Occupancy:
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
