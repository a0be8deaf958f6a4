"""Trials that die as a process dies: where they are told, or of a SIGKILL at any moment.

Run as a program, once for a whole table of deaths, because importing torch, and what oneDNN compiles at
first, cost more than a trial does. The undisturbed trial pays for both; the others are forks of its process.
After a death nothing of a trial runs on, not even a ``finally``. Reads a :class:`Job` as JSON and prints a
line of JSON for each thing that happened::

    ["epoch", TRIAL, EPOCH, METRICS]    a report
    ["ended", TRIAL, STATUS]            the exit status of a trial's process; 0: it has come to its end
"""

from __future__ import annotations

import functools
import gc
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from unittest import mock

import psutil
import torch

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training import EpochReport, Objective, TrialProcess, train_trial
from tune_rescon.training.module import TrialModule
from tune_rescon.training.optim import AveragedNetwork

#: Exit status of a trial that died where it should.
STRUCK: Final = 77

#: Where the trial ``whole`` leaves a copy of its folder after the first epoch; who dies, dies in the second.
BEGUN: Final = "begun"

#: Number of SIGKILLs after which a trial may live.
KILLS: Final = 6

#: Training steps before the latest of them, of a trial's six and more, and the seconds one takes, about.
LATEST: Final = 5.0
STEP: Final = 0.1

#: What a trial does between two epochs' reports, by the name a job gives it.
DEEDS: Final[dict[str, tuple[Any, str]]] = {
    "training_step": (TrialModule, "training_step"),
    "backward": (TrialModule, "backward"),
    "average": (AveragedNetwork, "update"),
    "statistics": (TrialModule, "reestimate_batch_norm"),
    "validation_step": (TrialModule, "validation_step"),
    "save": (torch, "save"),
    "fsync": (os, "fsync"),
    "replace": (Path, "replace"),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run: first the trial ``whole``, undisturbed."""

    folder: str
    config: dict[str, Any]
    epochs: int
    deeds: list[str]
    """Before each of these a trial is killed in its second epoch, and resumed: a key of ``DEEDS``; "torn
    save", half-way through a file; or "report", after the checkpoint. The trials are called "DEED N", after
    the N-th such deed of the epoch."""
    writes: list[str]
    """Deeds of which every occurrence in the epoch gets such a trial; of the others only the last does."""
    background: bool
    """Whether a thread writes the files of an epoch while the next one begins."""
    seeds: list[int]
    """Each a trial ``SIGKILL SEED``, killed again and again at moments drawn from the seed."""


def main() -> None:
    """Do the job on stdin."""
    job = Job(**json.loads(sys.stdin.read()))
    torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
    counts = _live_undisturbed(job)
    gc.freeze()  # or every fork copies what its garbage collection walks over
    points = [
        f"{deed} {occurrence}"
        for deed in job.deeds
        for occurrence in range(1 if deed in job.writes else counts[deed], counts[deed] + 1)
    ]
    for point in points:
        shutil.copytree(Path(job.folder) / BEGUN, Path(job.folder) / point)
        for deed in (point, ""):
            _tell_death(point, _fork(job, point, deed))
    steps = Steps()
    steps.count()
    for seed in job.seeds:
        _kill_again_and_again(job, f"SIGKILL {seed}", random.Random(seed), steps)


class Census:
    """Counts a trial's deeds between two epochs' reports."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.second_epoch: Counter[str] = Counter()

    def reported(self, epoch: int) -> None:
        """The deeds from here on are the next epoch's."""
        if epoch == 2:
            self.second_epoch = self._counts + Counter({"torn save": self._counts["save"], "report": 1})
        self._counts = Counter()

    def counting(self, name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        """``do``, counted."""

        @functools.wraps(do)  # Lightning reads signatures
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._counts[name] += 1
            return do(*args, **kwargs)

        return counted


def _live_undisturbed(job: Job) -> Counter[str]:
    """Live the trial ``whole``; how often it does each deed in its second epoch."""
    census = Census()
    with ExitStack() as patches:
        for name, (owner, attribute) in DEEDS.items():
            counted = census.counting(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, counted))
        _train(job, "whole", "", reported=census.reported)
    return census.second_epoch


def _kill_again_and_again(job: Job, trial: str, moments: random.Random, steps: Steps) -> None:
    for _ in range(KILLS):
        steps.forget()
        process = _fork(job, trial, "")
        _let_live(process, steps, moments.uniform(0, LATEST))
        os.kill(process, signal.SIGKILL)
        if _tell_death(trial, process) == 0:
            return
    _tell_death(trial, _fork(job, trial, ""))


class Steps:
    """How many training steps were begun, in this process and its forks."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def __int__(self) -> int:
        return self._shared[0]

    def forget(self) -> None:
        """Count from 0."""
        self._shared[0] = 0

    def count(self) -> None:
        """From now on."""
        step = TrialModule.training_step

        @functools.wraps(step)  # Lightning reads signatures
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._shared[0] += 1
            return step(*args, **kwargs)

        mock.patch.object(TrialModule, "training_step", counted).start()


def _let_live(process: int, steps: Steps, moment: float) -> None:
    """Wait for the given number of training steps, or until the trial has ended."""
    watched = psutil.Process(process)
    while int(steps) < int(moment):
        if watched.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.002)
    time.sleep(moment % 1 * STEP)


def _tell_death(trial: str, process: int) -> int:
    """Its exit status."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    _say("ended", trial, code)
    return code


def _say(*what: object) -> None:
    # One write: a process that is killed must not leave half a line.
    os.write(sys.stdout.fileno(), (json.dumps(what) + "\n").encode())


def _fork(job: Job, trial: str, point: str) -> int:
    process = os.fork()
    if process == 0:
        _train(job, trial, point)
        os._exit(0)
    return process


def _train(job: Job, trial: str, point: str, *, reported: Callable[[int], object] = lambda _: None) -> None:
    folder = Path(job.folder)
    digits = open_dataset(DatasetConfig(name="digits", limit=56), data_root=folder, cache_root=folder)
    deed, _, occurrence = point.rpartition(" ")
    death = Death(int(occurrence or 0))
    if deed:
        death.lurk(deed)

    def report(epoch: EpochReport) -> None:
        if deed == "report":
            death.come_near()
        _say("epoch", trial, epoch.epoch, dict(epoch.metrics))
        if trial == "whole" and epoch.epoch == 1:
            shutil.copytree(folder / trial, folder / BEGUN)
        reported(epoch.epoch)

    train_trial(
        TrialConfig.from_dict(job.config),
        digits,
        epochs=job.epochs,
        seed=0,
        checkpoint_dir=folder / trial,
        on_epoch=report,
        process=TrialProcess(device="cpu", threads=1, background_writes=job.background),
        # It gets better every epoch, so that each has a best network to write.
        objective=Objective(metric="train_loss", mode="min"),
    )


class Death:
    """Strikes before the ``occurrence``-th deed of its kind."""

    def __init__(self, occurrence: int) -> None:
        self._left = occurrence

    def lurk(self, deed: str) -> None:
        """Wait where ``deed`` is done."""
        if deed == "torn save":
            mock.patch.object(torch, "save", self._tear(torch.save)).start()
        elif deed != "report":
            owner, name = DEEDS[deed]
            mock.patch.object(owner, name, self._before(getattr(owner, name))).start()

    def come_near(self, *, last_deed: Callable[[], object] = lambda: None) -> None:
        """Strike if it is time, after ``last_deed``."""
        self._left -= 1
        if self._left == 0:
            last_deed()
            os._exit(STRUCK)

    def _before(self, do: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(do)  # Lightning reads signatures
        def doomed(*args: Any, **kwargs: Any) -> Any:
            self.come_near()
            return do(*args, **kwargs)

        return doomed

    def _tear(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def doomed(values: dict[str, Any], file: BinaryIO) -> None:
            whole = io.BytesIO()
            save(values, whole)
            half = whole.getvalue()[: len(whole.getvalue()) // 2]
            self.come_near(last_deed=lambda: os.write(file.fileno(), half))
            save(values, file)

        return doomed


if __name__ == "__main__":
    main()
