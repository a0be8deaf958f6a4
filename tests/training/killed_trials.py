"""Trials whose process is killed: before a given action, or by a SIGKILL at a random moment.

:func:`run` runs a whole table of kills, because the first compilation of oneDNN costs more than a trial. The
uninterrupted trial pays for it; the others are forks of its process. A killed process runs no code, not even
a ``finally``. Prints JSON lines::

    ["epoch", TRIAL, EPOCH, METRICS]    a report
    ["ended", TRIAL, STATUS]            the exit status of a trial's process; 0: the trial has finished
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
from collections.abc import Callable, Sequence
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
from tune_rescon.training.averaging import AveragedNetwork
from tune_rescon.training.module import TrialModule

#: Exit status of a process that was killed before the given action.
KILLED_STATUS: Final = 77

#: Copy of the uninterrupted trial's folder after the first epoch. Trials are killed in the second epoch.
AFTER_EPOCH_1: Final = "after_epoch_1"

#: Maximum number of SIGKILLs of a trial.
MAX_KILLS: Final = 6

#: Latest training step at which a trial is killed (it has six or more), and approximate seconds per step.
MAX_STEPS: Final = 5.0
STEP_SECONDS: Final = 0.1

#: The actions of a trial between two reports, by their name in a job.
ACTIONS: Final[dict[str, tuple[Any, str]]] = {
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
    """The trials to run. The first one is the trial ``uninterrupted``."""

    folder: str
    config: dict[str, Any]
    epochs: int
    actions: Sequence[str]
    """A trial is killed before each of these in its second epoch, and resumed: a key of ``ACTIONS``; "torn
    save", half-way through a file; or "report", after the checkpoint. The trials are named "ACTION N", for
    the N-th occurrence in the epoch."""
    writes: Sequence[str]
    """Actions whose every occurrence in the epoch gets a trial; of the others only the last one does."""
    background: bool
    """Whether a thread writes the files of an epoch during the next one."""
    seeds: Sequence[int]
    """Each gives a trial ``SIGKILL SEED``, killed repeatedly at random moments."""


def run(job: Job) -> None:
    """Run the trials of a job. This process must not have computed on several threads."""
    torch.set_num_threads(1)  # a process with a pool of threads cannot be forked
    counts = _train_uninterrupted(job)
    gc.freeze()  # otherwise garbage collection makes every fork copy its memory
    points = [
        f"{action} {occurrence}"
        for action in job.actions
        for occurrence in range(1 if action in job.writes else counts[action], counts[action] + 1)
    ]
    for point in points:
        shutil.copytree(Path(job.folder) / AFTER_EPOCH_1, Path(job.folder) / point)
        for action in (point, ""):
            _report_exit(point, _fork(job, point, action))
    steps = StepCounter()
    steps.install()
    for seed in job.seeds:
        _kill_repeatedly(job, f"SIGKILL {seed}", random.Random(seed), steps)


class ActionCounter:
    """Counts a trial's actions between two reports."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.second_epoch: Counter[str] = Counter()

    def on_report(self, epoch: int) -> None:
        """Start to count the next epoch."""
        if epoch == 2:
            self.second_epoch = self._counts + Counter({"torn save": self._counts["save"], "report": 1})
        self._counts = Counter()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its calls counted."""

        @functools.wraps(function)  # Lightning reads signatures
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._counts[name] += 1
            return function(*args, **kwargs)

        return wrapper


def _train_uninterrupted(job: Job) -> Counter[str]:
    """Run the uninterrupted trial and return the number of each action in its second epoch."""
    counter = ActionCounter()
    with ExitStack() as patches:
        for name, (owner, attribute) in ACTIONS.items():
            counted = counter.wrap(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, counted))
        _train(job, "uninterrupted", "", on_report=counter.on_report)
    return counter.second_epoch


def _kill_repeatedly(job: Job, trial: str, rng: random.Random, steps: StepCounter) -> None:
    for _ in range(MAX_KILLS):
        steps.reset()
        process = _fork(job, trial, "")
        _wait_for_steps(process, steps, rng.uniform(0, MAX_STEPS))
        os.kill(process, signal.SIGKILL)
        if _report_exit(trial, process) == 0:
            return
    _report_exit(trial, _fork(job, trial, ""))


class StepCounter:
    """Counts the training steps that were started in this process and its forks."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    def __int__(self) -> int:
        return self._shared[0]

    def reset(self) -> None:
        self._shared[0] = 0

    def install(self) -> None:
        """Patch the training step."""
        step = TrialModule.training_step

        @functools.wraps(step)  # Lightning reads signatures
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._shared[0] += 1
            return step(*args, **kwargs)

        mock.patch.object(TrialModule, "training_step", wrapper).start()


def _wait_for_steps(process: int, steps: StepCounter, kill_at: float) -> None:
    """Wait for ``kill_at`` training steps or the end of the trial."""
    trial_process = psutil.Process(process)
    while int(steps) < int(kill_at):
        if trial_process.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.002)
    time.sleep(kill_at % 1 * STEP_SECONDS)


def _report_exit(trial: str, process: int) -> int:
    """Wait for the end of a trial's process, print its exit status and return it."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    _print_event("ended", trial, code)
    return code


def _print_event(*fields: object) -> None:
    # One write: a killed process must not leave a partial line.
    os.write(sys.stdout.fileno(), (json.dumps(fields) + "\n").encode())


def _fork(job: Job, trial: str, point: str) -> int:
    process = os.fork()
    if process == 0:
        _train(job, trial, point)
        os._exit(0)
    return process


def _train(job: Job, trial: str, point: str, *, on_report: Callable[[int], object] = lambda _: None) -> None:
    folder = Path(job.folder)
    digits = open_dataset(DatasetConfig(name="digits", limit=56), data_root=folder, cache_root=folder)
    action, _, occurrence = point.rpartition(" ")
    kill = KillSwitch(int(occurrence or 0))
    if action:
        kill.install(action)

    def report(epoch: EpochReport) -> None:
        if action == "report":
            kill.count_down()
        _print_event("epoch", trial, epoch.epoch, dict(epoch.metrics))
        if trial == "uninterrupted" and epoch.epoch == 1:
            shutil.copytree(folder / trial, folder / AFTER_EPOCH_1)
        on_report(epoch.epoch)

    train_trial(
        TrialConfig.from_dict(job.config),
        digits,
        epochs=job.epochs,
        seed=0,
        checkpoint_dir=folder / trial,
        on_epoch=report,
        process=TrialProcess(device="cpu", threads=1, background_writes=job.background),
        # The training loss improves in every epoch, so that each epoch writes a best network.
        objective=Objective(metric="train_loss", mode="min"),
    )


class KillSwitch:
    """Ends the process before the ``occurrence``-th execution of an action."""

    def __init__(self, occurrence: int) -> None:
        self._remaining = occurrence

    def install(self, action: str) -> None:
        """Patch the function that executes ``action``."""
        if action == "torn save":
            mock.patch.object(torch, "save", self._truncating(torch.save)).start()
        elif action != "report":
            owner, name = ACTIONS[action]
            mock.patch.object(owner, name, self._before(getattr(owner, name))).start()

    def count_down(self, *, before_exit: Callable[[], object] = lambda: None) -> None:
        """Count one execution; at zero call ``before_exit`` and end the process."""
        self._remaining -= 1
        if self._remaining == 0:
            before_exit()
            os._exit(KILLED_STATUS)

    def _before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # Lightning reads signatures
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.count_down()
            return function(*args, **kwargs)

        return wrapper

    def _truncating(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(values: dict[str, Any], file: BinaryIO) -> None:
            buffer = io.BytesIO()
            save(values, buffer)
            half = buffer.getvalue()[: len(buffer.getvalue()) // 2]
            self.count_down(before_exit=lambda: os.write(file.fileno(), half))
            save(values, file)

        return wrapper
