"""Measure a network on a device: one training step, the occupancy of a GPU in training, and the latency."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ResourceError, format_error
from tune_rescon.models import NetworkDescription, build_described, describe_network
from tune_rescon.training.compile import choose_compiling
from tune_rescon.training.cuda_graphs import HangWatchdog, choose_graph_capture
from tune_rescon.training.device import DeviceConfig, isolate_rng, resolve_device
from tune_rescon.training.memory import activation_checkpointing
from tune_rescon.training.module import StepExecution, TrialModule

__all__ = [
    "Occupancy",
    "build_step",
    "build_trial_step",
    "busy_seconds",
    "measure_latency",
    "measure_occupancy",
]


#: The classes of CIFAR-10, for which the tables of these networks at 32 pixels were published.
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
    """Return a callable that runs one full training step of a preset.

    The callable returns the loss as a tensor on the device, and does not wait for it. Images of the preset's
    nominal size are on the device. Forward, loss, backward, optimiser and schedule are those of
    :func:`tune_rescon.training.train_trial` with the default recipe. On a GPU the first call captures the
    step as a CUDA graph. The step updates the training metrics, as in training. The process's switches (TF32,
    cuDNN's autotuner, the heap) are set during a call only.

    Args:
        preset: the network.
        batch_size: images of a step.
        device: "auto", "cpu" or "cuda".
        precision: as in TrialConfig.
        compiling: TrialConfig's ``compile``.
        checkpoint_activations: as in TrialConfig.
        cuda_graphs: as in TrialConfig.

    Raises:
        ConfigError: the precision or ``compiling`` is unknown.
        NetworkError: the preset is unknown.
        ResourceError: the device is unknown or absent.
    """
    config = TrialConfig(
        preset=preset,
        batch_size=batch_size,
        precision=precision,
        compile=compiling,
        checkpoint_activations=checkpoint_activations,
        cuda_graphs=cuda_graphs,
    )
    return build_trial_step(
        config, resolve_device(device, precision=config.precision), classes=CLASSES, in_channels=3
    )


def build_trial_step(
    config: TrialConfig,
    placement: DeviceConfig,
    *,
    classes: int,
    in_channels: int,
    watchdog: HangWatchdog | None = None,
) -> Callable[[], Tensor]:
    """Return a callable that runs one full training step of a trial, like :func:`build_step` for a preset.

    Args:
        config: the trial's configuration.
        placement: the device and the precision.
        classes: number of classes.
        in_channels: channels of the images.
        watchdog: the watchdog that ends this process if the capture hangs; None watches nothing.

    Raises:
        NetworkError: the network does not exist.
    """
    spec = describe_network(config, classes=classes, in_channels=in_channels)
    recomputes = activation_checkpointing(config, spec) == "on"
    compiling, _ = choose_compiling(config.compile, placement.device, recomputes=recomputes)
    module = TrialModule(
        build_described(spec),
        config,
        StepExecution(
            placement=placement,
            compiling=compiling,
            recomputes=recomputes,
            graph_capture=choose_graph_capture(
                config, placement, micro_batches=1, recomputes=recomputes, watchdog=watchdog
            ),
        ),
        classes=classes,
        epochs=1,
        steps_per_epoch=10**6,
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
            module.scaler.step(optimizer)
            module.scaler.update()
            scheduler.step()
        return loss.detach()

    return step


#: Steps before the measurement and in it. During the first ones cuDNN tries its algorithms, the allocator
#: grows, and the host waits for the first replays of a CUDA graph.
_WARMUP_STEPS: Final = 5
_MEASURED_STEPS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """The load on a GPU on which one process trains and no other process runs."""

    device: str
    """The GPU's name."""
    busy: float
    """Share of a step's time in which the GPU ran something, at most 1."""
    used: int
    """Bytes: weights, activations, the allocator's reserve and the process's CUDA context."""
    total: int
    """Bytes of the GPU's memory."""


def measure_occupancy(step: Callable[[], object], placement: DeviceConfig) -> Occupancy:
    """Run ``step`` several times on a CUDA device that no other process uses, and measure the load.

    Raises:
        torch.OutOfMemoryError: the memory is too small even for one step.
    """
    for _ in range(_WARMUP_STEPS):
        step()
    torch.cuda.synchronize(placement.device)
    # Time without the profiler, which slows the host and so leaves the device idle for longer.
    began = time.perf_counter()
    for _ in range(_MEASURED_STEPS):
        step()
    torch.cuda.synchronize(placement.device)
    seconds = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_MEASURED_STEPS):
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
    """Return the seconds covered by at least one span (start, end).

    >>> busy_seconds([(0.0, 1.0), (0.5, 2.0), (3.0, 4.0)])
    3.0
    """
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


#: Passes before the measurement, in which libraries choose algorithms and allocate memory.
_WARMUP_PASSES: Final = 3

#: Minimum number of timed passes, and the seconds of passes after which no further pass begins.
_LEAST_PASSES: Final = 5
_PASSES_SECONDS: Final = 0.2


@functools.lru_cache(maxsize=1024)
def measure_latency(spec: NetworkDescription, device: str) -> float:
    """Return the milliseconds of a network's forward pass for one image of its size.

    The network has random weights, is in eval mode and computes in fp32, on a CPU with one thread. The
    shortest of several passes counts, because other work on the machine has delayed it least. Each network is
    measured once per process.

    Raises:
        NetworkError: the network cannot be built.
        ResourceError: this machine does not have the device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        rule = "must be a device of the machine on which the search is started"
        got = "cuda, and torch finds no GPU here"
        raise ResourceError(format_error(rule, got=got, where="constraints.latency_ms.device"))
    placement = resolve_device(device, precision="fp32")
    with isolate_rng(placement.device), placement.active(threads=1), torch.inference_mode():
        network = placement.move_network(build_described(spec)).eval()
        images_BCHW = placement.move_images(torch.rand(1, spec.in_channels, spec.image_size, spec.image_size))
        for _ in range(_WARMUP_PASSES):
            network(images_BCHW)
        passes: list[float] = []
        while len(passes) < _LEAST_PASSES or sum(passes) < _PASSES_SECONDS:
            _wait(placement.device)
            began = time.perf_counter()
            network(images_BCHW)
            _wait(placement.device)
            passes.append(time.perf_counter() - began)
    return 1e3 * min(passes)


def _wait(device: torch.device) -> None:
    """Wait for a GPU's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
