"""One training step: this package's against the port's way, the same network, alternating.

The port that ResCon follows trains in fp32, NCHW, eagerly, with ``torch.optim.SGD``. Prints images per second
of both and the ratio of each round (median, first and third quartile), and what it ran on. On a CPU each side
has a process of its own: what the allocator keeps between steps is the whole process's. On a GPU both are in
this one::

    python benchmarks/step.py                                          # the two cases with a target
    python benchmarks/step.py --preset rescon_attention92_32 --batch-size 64 --rounds 7
    python benchmarks/step.py --precision bf16                         # ours only: the plain side stays fp32
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from table import Row, hardware, print_rows

from tune_rescon.config import TrialConfig, field_rule
from tune_rescon.models import build_network, list_presets, resolve_network
from tune_rescon.training import build_step

Step = Callable[[], object]

#: Preset, batch size, and how many times as fast ours is to be on a CPU.
CASES = (("rescon_attention92_32", 64, 2.0), ("attention56", 8, 1.5))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Images per second over some rounds."""

    median: float
    low: float
    high: float
    rounds: tuple[float, ...] = ()
    """Of each round, in order."""

    @classmethod
    def of(cls, images_per_second: list[float]) -> Speed:
        low, median, high = statistics.quantiles(images_per_second, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, rounds=tuple(images_per_second))

    def times(self, other: Speed) -> Speed:
        """How many times ``other``, round by round: what slows a whole round down drops out."""
        return Speed.of([mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)])

    def __str__(self) -> str:
        return f"{self.median:.1f} images/s (quartiles {self.low:.1f} to {self.high:.1f})"


def plain_step(preset: str, *, batch_size: int, device: str) -> Step:
    """The step as the port writes it, with torch's default switches."""
    size = resolve_network(TrialConfig(preset=preset), classes=10, in_channels=3).image_size
    network = build_network(preset, num_classes=10).to(device)
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


def strict_step(preset: str, *, batch_size: int, device: str) -> Step:
    """The plain step without the TF32 that torch's defaults let cuDNN's convolutions use."""
    step = plain_step(preset, batch_size=batch_size, device=device)

    def strict() -> object:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return step()

    return strict


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


@contextlib.contextmanager
def alone(make: Callable[[], Step]) -> Iterator[Step]:
    """The step ``make`` makes, in a process of its own; a call returns when the step is done."""
    processes = multiprocessing.get_context("spawn")
    mine, its = processes.Pipe()
    process = processes.Process(target=_serve, args=(make, its), daemon=True)
    process.start()
    its.close()  # so that its end ends a wait here

    def step() -> None:
        mine.send(None)
        mine.recv()

    try:
        yield step
    finally:
        mine.close()
        process.join()


def _serve(make: Callable[[], Step], connection: Connection) -> None:
    step = make()
    with contextlib.suppress(EOFError):
        while True:
            connection.recv()
            step()
            connection.send(None)


def compare(
    preset: str,
    *,
    batch_size: int,
    device: str,
    rounds: int,
    seconds: float,
    precision: str = "auto",
    compiling: str = "off",
    target: float | None = None,
) -> Row:
    """Print both speeds and their ratio; a row of it, which only a ``target`` gives a verdict."""
    makers: dict[str, Callable[[], Step]] = {
        "tune_rescon": functools.partial(
            build_step, preset, batch_size=batch_size, device=device, precision=precision, compiling=compiling
        ),
        "plain eager": functools.partial(plain_step, preset, batch_size=batch_size, device=device),
    }
    with contextlib.ExitStack() as processes:
        steps = {
            name: make() if device == "cuda" else processes.enter_context(alone(make))
            for name, make in makers.items()
        }
        speeds = alternate(steps, batch_size=batch_size, device=device, rounds=rounds, seconds=seconds)
    ratio = speeds["tune_rescon"].times(speeds["plain eager"])
    what = f"{preset}, batch {batch_size}, precision {precision}, compile {compiling}"
    print(f"{what}, n = {rounds} rounds of about {seconds:g} s each")
    for name, speed in speeds.items():
        print(f"  {name:12} {speed}")
    print(f"  ratio        {ratio.median:.2f} (quartiles {ratio.low:.2f} to {ratio.high:.2f})")
    return Row(
        what=f"training step, {what}, against plain fp32 NCHW eager",
        measured=f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times, n = {rounds}",
        target=f">= {target:g} times" if target else "none",
        met=None if target is None else ratio.median >= target,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list_presets(), help="one network instead of these two")
    parser.add_argument("--batch-size", type=int, default=64, help="with --preset")
    parser.add_argument("--precision", choices=field_rule("precision").choices, default="auto")
    parser.add_argument("--compile", choices=field_rule("compile").choices, default="off", help="ours only")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--seconds", type=float, default=5.0, help="of one round of one step")
    arguments = parser.parse_args()
    cases: Sequence[tuple[str, int, float | None]] = CASES
    if arguments.preset:
        cases = [(arguments.preset, arguments.batch_size, None)]
    print(hardware(arguments.device, "torch"))
    rows = [
        compare(
            preset,
            batch_size=batch_size,
            device=arguments.device,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            precision=arguments.precision,
            compiling=arguments.compile,
            target=target if arguments.device == "cpu" else None,
        )
        for preset, batch_size, target in cases
    ]
    print_rows(row for row in rows if row.met is not None)


if __name__ == "__main__":
    main()
