"""The parts of a visit to a GPU (benchmarks/gpu_visit.py): what each measures, and for how long at most.

A part is a function that yields its results, as values for a line of JSON each. It runs in a process of its
own: what cuDNN has chosen and what torch has compiled is kept by a process, and an arm that is to be measured
cold starts another one.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from elementwise import Fused, loss_curve, make_step
from roofline import measure_peaks, training_bytes, wait
from step import alternate, strict_step
from visit import Found, Visit, append, images_of
from waiting import Case
from watched_search import search

from tune_rescon.config import TrialConfig
from tune_rescon.models import resolve_network
from tune_rescon.training import EpochReport, Objective, TrialProcess, build_step, train_trial


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: what it measures, its limit, and the least time with which it is worth beginning."""

    about: str
    seconds: float
    least: float
    run: Callable[[Visit, float], Found]


def table(visit: Visit, seconds: float) -> Found:
    """The README's table, by benchmarks/gpu.py, which prints it."""
    command = [sys.executable, str(Path(__file__).with_name("gpu.py")), "--device", visit.device]
    if visit.tiny:
        command += ["--cases", "cifar_attention56:2", "--rounds", "2", "--seconds", "0.05"]
        command += ["--matrix", "64", "--copy", "0.01"]
    elif visit.images is not None:
        command += ["--images", str(visit.images)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=seconds)
    print(done.stdout, flush=True)
    yield {"printed": done.stdout.splitlines()}


# ---- the published row ---------------------------------------------------------------------------------


def row(visit: Visit, seconds: float) -> Found:
    """``rescon-cifar10-92-32`` as `reproduce` trains it, in this process: its losses and seconds."""
    del seconds
    yield from _trained(visit, "rescon", seeds=(0,))


def modern(visit: Visit, seconds: float) -> Found:
    """The same network for the same epochs with the modern recipe, a seed after the other."""
    del seconds
    yield from _trained(visit, "modern", seeds=(0, 1, 2))


def _trained(visit: Visit, recipe: str, *, seeds: tuple[int, ...]) -> Found:
    # What these import is not on every machine that is lent.
    from tune_rescon.data import open_dataset
    from tune_rescon.finals import PUBLISHED, Shares
    from tune_rescon.finals.plan import find_recipe
    from tune_rescon.finals.published import row_space
    from tune_rescon.spaces import Resources

    published = next(one for one in PUBLISHED if one.name == "rescon-cifar10-92-32")
    settings = {**find_recipe(recipe).settings, "preset": published.preset}
    if visit.tiny:
        settings |= {"preset": "cifar_attention56", "width": 0.25}
    share = 0.002 if visit.tiny else 1.0
    space = row_space(
        published,
        name="visit",
        shares=Shares(schedule=0.1 if visit.tiny else 1.0, images=share),
        seeds=1,
        resources=Resources(cpu=1, gpu=0 if visit.device == "cpu" else 1),
        images=images_of(visit),
    )
    asked = space.dataset_config(None)
    dataset = open_dataset(asked, data_root=visit.folder, cache_root=visit.folder / "cache")
    for seed in seeds:
        reports: list[EpochReport] = []
        tell = functools.partial(_tell_epoch, visit, reports, recipe, seed)
        started = time.perf_counter()
        train_trial(
            TrialConfig.from_dict(settings),
            dataset,
            epochs=space.fidelity.max,
            seed=seed,
            checkpoint_dir=visit.folder / f"{recipe}-{seed}",
            on_epoch=tell,
            objective=Objective(metric="test_accuracy"),
            process=TrialProcess(device=visit.device, on_message=print, hang_folder=visit.folder / "stalled"),
        )
        spent = time.perf_counter() - started
        if not reports:
            continue  # it had ended before the part was cut off, and has its line
        last = reports[-1].metrics
        measured = {name: last[name] for name in ("train_loss", "test_loss", "test_accuracy")}
        # A part that was cut off continues from its checkpoint: earlier epochs have lines already.
        yield {
            "epochs_of_this_run": len(reports),
            "row": published.name,
            "recipe": recipe,
            "seed": seed,
            "epochs": space.fidelity.max,
            "images": len(dataset.train),
            "seconds": round(spent, 1),
            "published": dict(published.figures),
            **{name: round(value, 4) for name, value in measured.items()},
        }


def _tell_epoch(
    visit: Visit, reports: list[EpochReport], recipe: str, seed: int, report: EpochReport
) -> None:
    """Append an epoch's line as it comes: a part that is cut off has trained all the same."""
    reports.append(report)
    names = ("train_loss", "train_accuracy", "epoch_seconds", "images_per_second")
    measured = {name: round(report.metrics[name], 4) for name in names}
    append(visit.results, {"recipe": recipe, "seed": seed, "epoch": report.epoch, **measured})


# ---- the first step -------------------------------------------------------------------------------------

#: How cuDNN chooses its algorithms, by arm. torch's own default is a limit of 10, which is today's.
FIRST_STEPS: dict[str, dict[str, Any]] = {
    "today": {},
    "limit 1": {"benchmark_limit": 1},
    "heuristic": {"benchmark": False},
    "limit 3": {"benchmark_limit": 3},
    "all": {"benchmark_limit": 0},
    "warmed": {},
}

#: What an arm must reach on a GPU: seconds of the first step, and share of today's speed after it.
FIRST_STEP_TARGET = 3.0
SPEED_TARGET = 0.97

#: The arms of every network; the first network alone has all of them.
EVERYWHERE = ("today", "limit 1", "heuristic")


def first_step(visit: Visit, seconds: float) -> Found:
    """Each arm in a process of its own: seconds of the first step, and the speed after it."""
    del seconds
    processes = multiprocessing.get_context("spawn")
    for case in visit.cases:
        speeds: dict[str, float] = {}
        for arm in FIRST_STEPS if case == visit.cases[0] else EVERYWHERE:
            with processes.Pool(1) as pool:
                found = pool.apply(_first_step, (case, visit, arm))
            speeds[arm] = found["images_per_second"]
            kept = found["images_per_second"] / speeds["today"]
            met = found["first_step_seconds"] <= FIRST_STEP_TARGET and kept >= SPEED_TARGET
            yield {**found, "of_todays_speed": round(kept, 4), "met": met if visit.device == "cuda" else None}


def _first_step(case: Case, visit: Visit, arm: str) -> dict[str, Any]:
    # DeviceConfig.active sets cuDNN's switches for each step by torch's `flags`, whose own default for the
    # limit is 10. A limit that is set once for the process would have no effect.
    flags = functools.partial(_changed_flags, torch.backends.cudnn.flags, FIRST_STEPS[arm])
    make = functools.partial(build_step, case.preset, device=visit.device)
    with mock.patch.object(torch.backends.cudnn, "flags", flags):
        warmed = 0.0
        if arm == "warmed":
            # A step of another batch loads libraries and kernels, but tries no algorithms for this shape.
            warmed, _ = _seconds_of_first(functools.partial(make, batch_size=2), visit.device)
        spent, step = _seconds_of_first(functools.partial(make, batch_size=case.batch_size), visit.device)
        speed = alternate(
            {"": step},
            batch_size=case.batch_size,
            device=visit.device,
            rounds=2 if visit.tiny else 5,
            seconds=0.05 if visit.tiny else 0.5,
        )[""]
    return {
        "case": case.preset,
        "batch": case.batch_size,
        "arm": arm,
        "warm_up_seconds": round(warmed, 2),
        "first_step_seconds": round(spent, 2),
        "images_per_second": round(speed.median, 1),
        "quartiles": [round(speed.low, 1), round(speed.high, 1)],
        "n": len(speed.rounds),
    }


def _changed_flags(flags: Callable[..., Any], changes: Mapping[str, Any], **given: Any) -> Any:
    return flags(**{**given, **changes})


def _seconds_of_first(
    make: Callable[[], Callable[[], object]], device: str
) -> tuple[float, Callable[[], object]]:
    """Seconds of the first call of the step that ``make`` makes, and the step."""
    step = make()
    wait(device)
    started = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - started, step


# ---- bytes ----------------------------------------------------------------------------------------------


def elementwise(visit: Visit, seconds: float) -> Found:
    """Ways to fuse what moves bytes, in turn with today's step and the plain one; share of the bandwidth."""
    del seconds
    size = int((0.01 if visit.tiny else 2) * 2**30)
    bandwidth = measure_peaks(visit.device, side=64, copy_bytes=size).bandwidth
    for case in visit.cases:
        build = functools.partial(build_step, batch_size=case.batch_size, device=visit.device)
        steps: dict[str, Callable[[], object]] = {}
        first: dict[str, float] = {}
        arms: dict[str, Callable[[], Callable[[], object]]] = {
            "today": functools.partial(make_step, case, visit.device, fused="no"),
            "elementwise compiled": functools.partial(make_step, case, visit.device, fused="compiled"),
            "norms by Triton": functools.partial(make_step, case, visit.device, fused="triton"),
            "units compiled": functools.partial(build, case.preset, compiling="on"),
            "plain fp32": functools.partial(
                strict_step, case.preset, batch_size=case.batch_size, device=visit.device
            ),
        }
        if case != visit.cases[0]:
            del arms["units compiled"]  # a minute for each network; known (docs/benchmarks.md)
        for arm, make in arms.items():
            try:
                first[arm], steps[arm] = _seconds_of_first(make, visit.device)
            except Exception as error:
                # A compiler can raise anything; the other arms' figures are worth having all the same.
                yield {"case": case.preset, "arm": arm, "error": str(error).strip().partition("\n")[0]}
        speeds = alternate(
            steps,
            batch_size=case.batch_size,
            device=visit.device,
            rounds=2 if visit.tiny else 5,
            seconds=0.05 if visit.tiny else 0.5,
        )
        spec = resolve_network(TrialConfig(preset=case.preset), classes=10, in_channels=3)
        moved = training_bytes(spec, element=4 if visit.device == "cpu" else 2)
        for arm, speed in speeds.items():
            ratio = speed.times(speeds["plain fp32"])
            yield {
                "case": case.preset,
                "batch": case.batch_size,
                "arm": arm,
                "first_step_seconds": round(first[arm], 1),
                "images_per_second": round(speed.median, 1),
                "times_plain": [round(value, 3) for value in (ratio.low, ratio.median, ratio.high)],
                "share_of_bandwidth": round(moved * speed.median / bandwidth, 4),
                "n": len(speed.rounds),
            }


def equality(visit: Visit, seconds: float) -> Found:
    """The losses of 200 steps from one initialisation: today's twice, and with what is fused."""
    del seconds
    steps = 2 if visit.tiny else 200
    case = visit.cases[0]
    today = loss_curve(case, visit.device, steps=steps, fused="no")
    # How far two runs of the same step are apart says what the other figures are worth.
    arms: dict[str, Fused] = {
        "today again": "no",
        "elementwise compiled": "compiled",
        "norms by Triton": "triton",
    }
    for arm, fused in arms.items():
        losses = loss_curve(case, visit.device, steps=steps, fused=fused)
        apart = [abs(one - other) for one, other in zip(today, losses, strict=True)]
        tail = len(apart) // 4 or 1
        yield {
            "case": case.preset,
            "arm": arm,
            "steps": steps,
            "first_step_apart": apart[0],
            "largest": max(apart),
            "means_of_the_last_quarter": [statistics.fmean(one[-tail:]) for one in (today, losses)],
        }


# ---- checkpoints ----------------------------------------------------------------------------------------


def checkpoint(visit: Visit, seconds: float) -> Found:
    """For how long an epoch's checkpoint holds the training up, by this thread and by another one."""
    del seconds
    from checkpoint_cost import measure

    options = argparse.Namespace(
        device=visit.device,
        batches=2 if visit.tiny else 100,
        epochs=2 if visit.tiny else 6,
        rounds=2 if visit.tiny else 3,
        threads=1 if visit.tiny else None,
    )
    folder = visit.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for found in measure(visit.cases[0], folder, options):
        yield {"what": found.what, "measured": found.measured, "target": found.target, "met": found.met}
    shutil.rmtree(folder)


#: In the order in which a visit runs them: what decides about code first, the longest last.
PARTS: dict[str, Part] = {
    "checkpoint": Part(about="an epoch's checkpoint", seconds=60, least=30, run=checkpoint),
    "first-step": Part(about="the first step by arms", seconds=330, least=60, run=first_step),
    "elementwise": Part(about="fused elementwise parts", seconds=300, least=90, run=elementwise),
    "equality": Part(about="losses of 200 steps", seconds=60, least=30, run=equality),
    "row": Part(about="the published row, 10 epochs on 50,000 images", seconds=420, least=300, run=row),
    "search": Part(about="att92 for eight minutes, watched", seconds=560, least=200, run=search),
    "modern": Part(about="the same epochs by the modern recipe", seconds=330, least=100, run=modern),
    "table": Part(about="benchmarks/gpu.py", seconds=300, least=120, run=table),
}
