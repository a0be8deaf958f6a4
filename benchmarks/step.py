"""One training step: this package's against the port's way, the same network, alternating in one process.

The port that ResCon follows trains in fp32, NCHW, eagerly, with ``torch.optim.SGD``. Prints images per second
of both (median, first and third quartile of the rounds), their ratio, and what it ran on::

    python benchmarks/step.py --preset rescon_attention92_32 --batch-size 64 --rounds 7
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from tune_rescon.config import TrialConfig
from tune_rescon.models import build_network, list_presets, resolve_network
from tune_rescon.training import build_step

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second over some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, images_per_second: list[float]) -> Speed:
        low, median, high = statistics.quantiles(images_per_second, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)

    def __str__(self) -> str:
        return f"{self.median:.1f} images/s (quartiles {self.low:.1f} to {self.high:.1f})"


def plain_step(preset: str, *, batch_size: int, device: str) -> Step:
    """The step as the port writes it, with torch's default switches."""
    size = resolve_network(TrialConfig(preset=preset), classes=10, in_channels=3).image_size
    network = build_network(preset, classes=10).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images_BCHW = torch.randn(batch_size, 3, size, size, device=device)
    labels_B = torch.randint(10, (batch_size,), device=device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images_BCHW), labels_B)
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()

    return step


def alternate(
    steps: dict[str, Step], *, batch_size: int, device: str, rounds: int, seconds: float
) -> dict[str, Speed]:
    """Time ``steps`` in turn, ``rounds`` times, each for about ``seconds``: drift hits all of them alike."""
    counts = {name: _warm_up(step, device, seconds) for name, step in steps.items()}
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            speeds[name].append(batch_size * counts[name] / _time(step, counts[name], device))
    return {name: Speed.of(values) for name, values in speeds.items()}


def _warm_up(step: Step, device: str, seconds: float) -> int:
    _time(step, 3, device)  # allocator, autotuner, lazily loaded kernels
    return max(1, round(seconds / _time(step, 1, device)))


def _time(step: Step, count: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(preset: str, *, batch_size: int, device: str, rounds: int, seconds: float) -> None:
    """Print both speeds and their ratio."""
    steps = {
        "tune_rescon": build_step(preset, batch_size=batch_size, device=device),
        "plain eager": plain_step(preset, batch_size=batch_size, device=device),
    }
    speeds = alternate(steps, batch_size=batch_size, device=device, rounds=rounds, seconds=seconds)
    print(f"{preset}, batch {batch_size}, n = {rounds} rounds of about {seconds:g} s each")
    for name, speed in speeds.items():
        print(f"  {name:12} {speed}")
    print(f"  ratio        {speeds['tune_rescon'].median / speeds['plain eager'].median:.2f}")


def hardware(device: str) -> str:
    """What the figures are of."""
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        what = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        what = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{what}; Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            named = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list_presets(), default="rescon_attention92_32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round of one step")
    arguments = parser.parse_args()
    print(hardware(arguments.device))
    compare(
        arguments.preset,
        batch_size=arguments.batch_size,
        device=arguments.device,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )


if __name__ == "__main__":
    main()
