"""What an epoch's checkpoint costs the training's thread, written by this thread or by another one.

First the parts of one epoch's files, of a trial of this package: the copy of the state, what torch makes of
it in memory, and the durable writing, by ``os.fsync`` too. Then trainings through ``train_trial``, in turn:
files written before the next epoch begins, or by a thread while its first steps run (``background_writes``).
Each gives the seconds for which an epoch held its thread up, and those of the whole training per epoch::

    python benchmarks/checkpoint_cost.py [--device cuda] [--rounds 5]

On a CPU the thread that writes takes processor time from the steps. There the second figure counts.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from table import Row, hardware, print_rows
from waiting import Case, random_dataset

from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport, TrialProcess, train_trial
from tune_rescon.training.checkpoint import copy_to_host, read_checkpoint, write_durably
from tune_rescon.training.trial_files import CheckpointWriter

#: Seconds of a GPU's idle time at an epoch's end that are allowed.
TARGET = 0.020


def main() -> None:
    options = parse()
    case = Case.parse(options.case)
    print(hardware(options.device, "torch", "pytorch-lightning"))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(case, Path(folder), options)
    print_rows(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", default="rescon_attention92_32:8", help="preset and batch")
    parser.add_argument("--batches", type=int, default=8, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="of a training; the last one is not overlapped")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each kind, at least 2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where files are written; the disk counts")
    return parser.parse_args()


def measure(case: Case, folder: Path, options: argparse.Namespace) -> list[Row]:
    show_parts(case, folder, options)
    held: dict[bool, list[float]] = {False: [], True: []}
    whole: dict[bool, list[float]] = {False: [], True: []}
    for number in range(options.rounds):
        for background in (False, True):
            place = folder / f"{number}-{background}"
            with timed() as spent:
                started = time.perf_counter()
                train(case, place, options, background=background)
                whole[background].append((time.perf_counter() - started) / options.epochs)
            # Nothing follows the last epoch, so it waits for its files in both kinds.
            held[background] += spent.by_epoch()[:-1]
    print(f"\n{case.preset}, batch {case.batch_size}, {options.batches} batches an epoch; {options.rounds}")
    print(f"trainings of {options.epochs} epochs of each kind, in turn:")
    for background, name in ((False, "written first"), (True, "by a thread")):
        print(f"  {name:14} holds the training's thread up for {spread(held[background], 1e3)} ms an epoch;")
        print(f"                 {spread(whole[background])} s an epoch in all", flush=True)
    median = statistics.median(held[True])
    return [
        Row(
            what=f"an epoch's checkpoint holds up a training on {options.device}, {case.preset}",
            measured=f"{1e3 * median:.0f} ms; written first {1e3 * statistics.median(held[False]):.0f} ms",
            target=f"<= {1e3 * TARGET:.0f} ms on a GPU",
            met=median <= TARGET if options.device == "cuda" else None,
        )
    ]


def show_parts(case: Case, folder: Path, options: argparse.Namespace) -> None:
    """Print what the files of one epoch cost, part by part; n = ``rounds`` of each."""
    place = folder / "parts"
    epochs, options.epochs = options.epochs, 1
    train(case, place, options, background=False)
    options.epochs = epochs
    files = {name: read_checkpoint(place / f"{name}.ckpt") for name in ("best", "last")}
    on_device = {name: moved(values, options.device) for name, values in files.items()}
    size = sum((place / f"{name}.ckpt").stat().st_size for name in files)
    print(f"\nbest.ckpt and last.ckpt of {case.preset}: {size / 1e6:.0f} MB; n = {options.rounds}, ms:")
    synced: list[float] = []

    def serialise() -> None:
        for values in files.values():
            torch.save(values, io.BytesIO())

    def write() -> None:
        for name, values in on_device.items():
            write_durably(values, place / f"{name}.ckpt")

    parts: dict[str, Callable[[], object]] = {
        "copied": lambda: copy_to_host(tuple(on_device.values())),
        "serialised": serialise,
        "durable": write,
    }
    with mock.patch.object(os, "fsync", clocked(os.fsync, synced)):
        for name, part in parts.items():
            print(f"  {name:12} {spread([seconds(part) for _ in range(options.rounds)], 1e3)}")
    each = [sum(synced[start : start + 4]) for start in range(0, len(synced), 4)]
    print(f"  of it fsync  {spread(each, 1e3)}", flush=True)


def moved(values: Any, device: str) -> Any:
    """``values`` with their tensors in memory of ``device``, not in a mapped file."""
    if isinstance(values, torch.Tensor):
        return values.to(device, copy=True)
    if isinstance(values, dict):
        return {name: moved(value, device) for name, value in values.items()}
    return [moved(value, device) for value in values] if isinstance(values, list) else values


def train(case: Case, folder: Path, options: argparse.Namespace, *, background: bool) -> list[EpochReport]:
    reports: list[EpochReport] = []
    side = 32
    train_trial(
        TrialConfig(preset=case.preset, batch_size=case.batch_size, precise_bn_batches=1),
        random_dataset(options.batches * case.batch_size, side),
        epochs=options.epochs,
        seed=0,
        checkpoint_dir=folder,
        on_epoch=reports.append,
        process=TrialProcess(device=options.device, threads=options.threads, background_writes=background),
    )
    return reports


class Spent:
    """Seconds for which a training's thread wrote, copied or waited, one entry for each call."""

    def __init__(self) -> None:
        self.keeps: list[float] = []
        self.finishes: list[float] = []

    def by_epoch(self) -> list[float]:
        """Of each epoch."""
        return [kept + waited for kept, waited in zip(self.keeps, self.finishes, strict=True)]


@contextmanager
def timed() -> Iterator[Spent]:
    """Time what the training's thread spends in :class:`CheckpointWriter`."""
    spent = Spent()
    with ExitStack() as patches:
        for name, into in (("save", spent.keeps), ("finish", spent.finishes)):
            timer = clocked(getattr(CheckpointWriter, name), into)
            patches.enter_context(mock.patch.object(CheckpointWriter, name, timer))
        yield spent


def clocked(call: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """``call``, whose seconds are appended to ``into``."""

    @functools.wraps(call)
    def timer(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            into.append(time.perf_counter() - started)

    return timer


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: list[float], scale: float = 1.0) -> str:
    """Median and quartiles in words."""
    low, median, high = (scale * value for value in statistics.quantiles(values, n=4, method="inclusive"))
    return f"{median:.3g} ({low:.3g} to {high:.3g}, n = {len(values)})"


if __name__ == "__main__":
    main()
