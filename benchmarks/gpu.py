"""Figures for the GPU this machine has; says so, and exits 0, where it has none (``make gpu-check``).

Needs torch (2.11 or newer), torchvision and pytorch-lightning, nothing else of what the package installs.
Prints

- the training step, as a CUDA graph, against the port's way (benchmarks/step.py), and by each of the ways
  that a space may ask for (its kernels launched one by one, compiled, with checkpointed activations), their
  memory and how long the first one took;
- the share of the device's measured peaks that the step reaches (benchmarks/roofline.py);
- what a step waits for its images, which are random here;
- test accuracy against the wall clock on real images, if it is given some.

About five minutes with images::

    python benchmarks/gpu.py --images cifar10-jpeg.zip [--minutes 2]
"""

from __future__ import annotations

import argparse
import functools
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accuracy import show_training
from roofline import Peaks, measure_peaks, training_bytes, training_flops, wait
from step import Speed, alternate, plain_step, strict_step
from table import Row, hardware, print_rows
from waiting import Case, show_images

from tune_rescon.config import TrialConfig
from tune_rescon.models import resolve_network
from tune_rescon.training import build_step
from tune_rescon.training.compile import compiler_problem
from tune_rescon.training.device import resolve_device
from tune_rescon.training.memory import ran_out_of_memory

#: Preset and batch size: the 32-pixel network and the 224-pixel ones, at batches that keep a GPU busy.
CASES = ("rescon_attention92_32:128", "attention56:64", "attention92:64")

#: Makers of our step by the ways that are not the default.
WAYS: dict[str, Callable[..., Callable[[], object]]] = {
    "launched": functools.partial(build_step, cuda_graphs="off"),
    "compiled": functools.partial(build_step, compiling="on"),
    "checkpointed": functools.partial(build_step, checkpoint_activations="on"),
}

#: What the ratio should be.
TARGET = 5.0


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU that torch can use: nothing to check")
        print_rows([row(case, options) for case in options.cases])
        return
    started = time.perf_counter()
    print(hardware(options.device, "torch", "pytorch-lightning"))
    peaks = show_peaks(options)
    rows = [show_step(case, peaks, options) for case in options.cases]
    # Each of its trainings records the step again.
    show_images(options.cases[0], options.device, rounds=min(options.rounds, 3))
    print_rows(rows)
    if options.images is None:
        print("\nno --images: nothing was trained")
    else:
        with tempfile.TemporaryDirectory() as folder:
            show_training(
                options.cases[0], options.images, options.device, 60 * options.minutes, Path(folder)
            )
    print(f"\n{time.perf_counter() - started:.0f} s in all")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, help="CIFAR-10: a folder or .zip with train/ and test/CLASS/*.jpg"
    )
    parser.add_argument("--minutes", type=float, default=2.0, help="of training on them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    parser.add_argument("--cases", nargs="+", type=Case.parse, default=[Case.parse(case) for case in CASES])
    parser.add_argument(
        "--ways",
        nargs="*",
        choices=WAYS,
        help="besides the default one; without this: on a GPU all for the first case, and launched for the"
        " others, whose compilation takes a minute each; on a CPU none",
    )
    parser.add_argument("--rounds", type=int, default=5, help="at least 2")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round of one step")
    parser.add_argument("--matrix", type=int, default=8192, help="side of the matrices multiplied")
    parser.add_argument("--copy", type=float, default=2.0, help="GiB copied within the device")
    return parser.parse_args(argv)


def show_peaks(options: argparse.Namespace) -> Peaks:
    peaks = measure_peaks(options.device, side=options.matrix, copy_bytes=int(options.copy * 2**30))
    products = ", ".join(f"{name} {flops / 1e12:.1f}" for name, flops in peaks.flops.items())
    print(f"\npeaks: products of matrices of {options.matrix} x {options.matrix} in TFLOP/s: {products};")
    print(f"a copy within the device {peaks.bandwidth / 1e9:.0f} GB/s, read and written; medians of 20")
    return peaks


def show_step(case: Case, peaks: Peaks, options: argparse.Namespace) -> Row:
    """Both steps of one network; with half the batch where the memory is too small for either."""
    try:
        speeds = measure_step(case, options)
    except RuntimeError as error:
        if not ran_out_of_memory(error) or case.batch_size < 2:
            raise
        print(f"\n{case.preset}: a batch of {case.batch_size} images does not fit for both; half of it")
    else:
        show_roofline(case, speeds, peaks, options.device)
        return row(case, options, speeds)
    # Here, not in the handler: the exception holds what did not fit.
    free(options.device)
    return show_step(replace(case, batch_size=case.batch_size // 2), peaks, options)


def row(case: Case, options: argparse.Namespace, speeds: dict[str, Speed] | None = None) -> Row:
    """The table's row; without ``speeds`` of a machine that has no GPU to measure them on."""
    measured, met = "no GPU here", None
    if speeds is not None:
        *_, against = speeds
        ratio = speeds["tune_rescon"].times(speeds[against])
        measured = f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) x, n = {options.rounds}"
        met = ratio.median >= TARGET
    return Row(
        what=f"training step on {options.device}, {case.preset}, batch {case.batch_size},"
        " against plain fp32 eager",
        measured=measured,
        target=f">= {TARGET:g} x images/s",
        met=met,
    )


def measure_step(case: Case, options: argparse.Namespace) -> dict[str, Speed]:
    """Print speeds, ratios and memory; the speeds."""
    makers: dict[str, Callable[..., Callable[[], object]]] = {
        "tune_rescon": build_step,
        **ways(case, options),
        "plain eager": plain_step,
    }
    if options.device == "cuda":
        makers["plain fp32"] = strict_step
    steps, notes = {}, []
    for name, make in makers.items():
        try:
            first, held, steps[name] = begin(make, case, options.device)
        except Exception as error:
            if name not in WAYS:
                raise
            # The others' figures are worth having all the same.
            notes.append(f"  {name:12} could not be run: {str(error).strip().partition(chr(10))[0]}")
            continue
        memory = f", {held / 2**30:.2f} GiB" if held else ""
        notes.append(f"  {name:12} first step {first:.1f} s{memory}")
    speeds = alternate(
        steps,
        batch_size=case.batch_size,
        device=options.device,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    rounds = f"{options.rounds} rounds of about {options.seconds:g} s"
    print(f"\n{case.preset}, batch {case.batch_size}, n = {rounds}")
    ours = speeds["tune_rescon"]
    for name, speed in speeds.items():
        print(f"  {name:12} {speed}{'' if speed is ours else f'; ratio {ours.median / speed.median:.2f}'}")
    print("\n".join(notes), flush=True)
    return speeds


def ways(case: Case, options: argparse.Namespace) -> dict[str, Callable[..., Callable[[], object]]]:
    """Makers of our step by the ways asked for; says which are impossible here."""
    asked = options.ways
    if asked is None:
        asked = [] if options.device == "cpu" else list(WAYS) if case == options.cases[0] else ["launched"]
    problem = compiler_problem(torch.device(options.device)) if "compiled" in asked else None
    if problem is not None:
        # The step would run uncompiled, under a name that says it did not.
        print(f"\nnothing can be compiled here: {problem}")
        asked.remove("compiled")
    return {name: WAYS[name] for name in asked}


def begin(
    make: Callable[..., Callable[[], object]], case: Case, device: str
) -> tuple[float, int, Callable[[], object]]:
    """Build and run a step: seconds of the first (recording, compiling, trying kernels), bytes taken, it."""
    free(device)
    before = reserved(device)
    step = make(case.preset, batch_size=case.batch_size, device=device)
    wait(device)
    started = time.perf_counter()
    step()
    wait(device)
    first = time.perf_counter() - started
    # What the autotuner tried in the first step is not what training needs.
    free(device)
    step()
    wait(device)
    return first, reserved(device) - before, step


def reserved(device: str) -> int:
    """Bytes that torch's allocator has of the device: a CUDA graph's are in it while it does not play too."""
    return torch.cuda.memory_reserved() if device == "cuda" else 0


def free(device: str) -> None:
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def show_roofline(case: Case, speeds: dict[str, Speed], peaks: Peaks, device: str) -> None:
    placement = resolve_device(device, precision="auto")
    spec = resolve_network(TrialConfig(preset=case.preset), classes=10, in_channels=3)
    peak = peaks.flops[placement.precision]
    for name in ("tune_rescon", "compiled"):
        if name not in speeds:
            continue
        flops = training_flops(spec) * speeds[name].median
        element = 4 if placement.autocast_dtype is None else 2
        moved = training_bytes(spec, element=element) * speeds[name].median
        share = f"{flops / peak:.1%} of the peak in {placement.precision}"
        bytes_share = f"{moved / peaks.bandwidth:.0%} of the bandwidth"
        print(f"  roofline     {name}: {flops / 1e12:.1f} TFLOP/s, {share};")
        print(f"               about {moved / 1e9:.0f} GB/s moved, {bytes_share}", flush=True)


if __name__ == "__main__":
    main()
