"""What Ray runs: one trial, in a process that stays for the next one.

This module is imported by the driver (to send the function by reference) and by the workers (to run it), so
nothing heavy is imported before a trial really runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import os
import queue
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from tune_rescon.config import DatasetConfig, MetricAt, TrialConfig, TrialState
from tune_rescon.training import messages
from tune_rescon.tuning.ray.preemption import NOTICE, never, node_is_drained

if TYPE_CHECKING:
    from tune_rescon.data import ImageDataset
    from tune_rescon.storage import CheckpointMirror
    from tune_rescon.training import EpochReport
    from tune_rescon.training.callbacks import Preempted
    from tune_rescon.training.distributed import ProcessGroup

__all__ = [
    "STALLS",
    "CheckpointSync",
    "TrialTask",
    "on_one_thread",
    "run_trial",
    "synchronised",
    "train_task",
]


_Result = TypeVar("_Result")

_TODO: Final[queue.SimpleQueue[tuple[Callable[[], object], Future[object]]]] = queue.SimpleQueue()
_BEGINNING: Final = threading.Lock()


def on_one_thread(work: Callable[[], _Result]) -> _Result:
    """What ``work`` returns, run on the thread on which this process has run all others, after them.

    Raises:
        BaseException: what ``work`` has raised, ``SystemExit`` too, by which Tune ends a trial.
    """
    done: Future[_Result] = Future()
    with _BEGINNING:
        _begin()
    _TODO.put((work, done))  # type: ignore[arg-type]  # of any result
    return done.result()


@functools.cache
def _begin() -> None:
    # A daemon, unlike an executor's: a process that is told to end need not wait for a trial.
    threading.Thread(target=_serve, name="trials", daemon=True).start()


def _serve() -> None:
    while True:
        # A frame of its own: what is done is not kept until the next work comes.
        _do(*_TODO.get())


def _do(work: Callable[[], object], done: Future[object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)


class CheckpointSync(Protocol):
    """What a trial's loop asks for. Neither call raises: a trial does not end because a copy is late."""

    def send(self, *, last: bool) -> None:
        """Have kept what was written since; ``last``: no epoch comes after this one."""

    def kept(self, path: Path) -> str | None:
        """Where any machine finds a file of the folder; None if it is on this node only."""


class _InPlace:
    """The folder is where the checkpoints are kept."""

    def send(self, *, last: bool) -> None:
        """Nothing to do."""

    def kept(self, path: Path) -> str | None:
        """The file itself."""
        return str(path)


class _AtUrl:
    """The folder is this node's own."""

    def __init__(self, mirror: CheckpointMirror) -> None:
        self._mirror = mirror

    def send(self, *, last: bool) -> None:
        """Send what is new."""
        self._mirror.send(insist=last)

    def kept(self, path: Path) -> str | None:
        """The file's URL, once it is there."""
        return self._mirror.url(path.name)


@contextlib.contextmanager
def synchronised(
    folder: Path,
    url: str | None,
    *,
    names: Sequence[str],
    progress: Callable[[Path], int],
    note: Callable[[str], None],
) -> Iterator[CheckpointSync]:
    """For the time of the block, ``folder`` holds what there is of a trial, here or at ``url``.

    Args:
        folder: the trial's checkpoints; if there is a URL, in a folder of this run of the search.
        url: where they are kept; None: where they are.
        names: the files to keep, in the order they are written.
        progress: how far a folder has come by its files, in any unit.
        note: told what fails.

    Raises:
        StorageError: this node cannot use the URL at all (a package is missing).
    """
    if url is None:
        yield _InPlace()
        return
    from tune_rescon.storage import CheckpointMirror, RemoteFolder, StorageUrl

    _forget_other_runs(folder.parent)
    remote = RemoteFolder.connect(StorageUrl(url=url))
    mirror = CheckpointMirror(local=folder, remote=remote, names=names, note=note)
    mirror.fetch(progress)
    try:
        yield _AtUrl(mirror)
    finally:
        mirror.release()


def _forget_other_runs(run: Path) -> None:
    """Delete what earlier runs of the search left on this node: their workers were killed."""
    if run.parent.is_dir():
        for other in run.parent.iterdir():
            if other != run:
                shutil.rmtree(other, ignore_errors=True)


#: What ran out of memory on this node, beside its decoded images.
_OVERRUNS: Final = "out_of_memory.json"

#: Where a process stood that a recording of its training steps had not come back to, likewise: a folder.
STALLS: Final = "stalled"

#: What torch.compile has made on this node, there too.
_COMPILED: Final = "compiled"


def train_task(
    task: TrialTask,
    folder: Path,
    peers: ProcessGroup,
    *,
    on_epoch: Callable[[EpochReport], None],
    on_note: Callable[[str], None],
    leave: Callable[[], bool] = never,
) -> None:
    """Train as ``task`` says, with ``peers``, from what ``folder`` holds.

    Raises:
        Preempted: ``leave`` said so, and the trial is to go on in another process.
    """
    from tune_rescon.training import train_trial
    from tune_rescon.training.compile import keep_compiled_code

    freeze_imports()
    if task.config.compile != "off":
        keep_compiled_code(Path(task.cache_root) / _COMPILED)
    train_trial(
        task.config,
        _dataset(task.dataset, task.data_root, task.cache_root),
        epochs=task.epochs,
        seed=task.seed,
        checkpoint_dir=folder,
        on_epoch=on_epoch,
        on_note=on_note,
        device=task.device,
        threads=task.threads,
        metric=task.metric,
        mode=task.mode,
        keep=task.keep,
        overruns=Path(task.cache_root) / _OVERRUNS,
        stalls=Path(task.cache_root) / STALLS,
        peers=peers,
        leave=leave,
    )


@functools.cache
def freeze_imports() -> None:
    """Once a process: have garbage collections, one before each trial, pass over what was imported.

    The libraries' half a million objects make each of them take 0.3 s; without them it is a tenth of that.
    """
    gc.collect()
    gc.freeze()


@functools.lru_cache(maxsize=2)
def _dataset(dataset: DatasetConfig, data_root: str, cache_root: str) -> ImageDataset:
    # Opened once per process: the next trial of a reused actor finds it here.
    from tune_rescon.data import open_dataset

    return open_dataset(dataset, data_root=Path(data_root), cache_root=Path(cache_root))


#: The files of a trial that are kept where the storage is a URL, in the order they are written.
_KEPT: Final = ("best.ckpt", "last.ckpt")

#: Seconds a process that was told to go waits for the driver to hear that it goes in order.
_FAREWELL: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """All a worker is told about a trial. Plain values only: it crosses processes as Tune's config dict."""

    number: int
    config: TrialConfig
    dataset: DatasetConfig
    epochs: int
    """Epochs of the whole schedule (``fidelity.max``)."""
    seed: int
    metric: str
    mode: str
    keep: MetricAt = "best"
    """Which epoch's network the trial keeps (``metric.at``)."""
    recorded: int
    """Epochs the record holds; a worker that knows of more owes their reports."""
    checkpoint_dir: str
    checkpoint_url: str | None
    """Where they are kept, if that is not where they are written."""
    data_root: str
    cache_root: str
    threads: int
    """CPU threads of a training process."""
    workers: int = 1
    """Processes that train it together."""
    device: str
    """``"cuda"`` where the trial was given a GPU, else ``"cpu"``."""

    def to_dict(self) -> dict[str, Any]:
        """Tune's config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialTask:
        """Back from Tune's config."""
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "dataset": DatasetConfig(**values["dataset"]),
        }
        return cls(**{**values, **nested})


def run_trial(config: dict[str, Any]) -> None:
    """Train as ``config`` (a :class:`TrialTask` as dict) says, reporting to Tune after each epoch.

    An exception is reported as the trial's end rather than raised: Tune would retry it, and a fault of the
    configuration comes back every time. What Tune retries is a worker that died: so does one that was told to
    go, once its trial is left in order.
    """
    on_one_thread(functools.partial(_run, TrialTask.from_dict(config)))


def _run(task: TrialTask) -> None:
    from ray import tune

    try:
        left = _train(task)
    except Exception as error:
        tune.report({"number": task.number, "state": _fate(error).value, "error": traceback.format_exc()})
    else:
        if left is not None:
            _go(task, left)


def _train(task: TrialTask) -> Preempted | None:
    from tune_rescon.training.lean import import_lean_torchmetrics

    # First, as Lightning would otherwise bring all of torchmetrics.
    import_lean_torchmetrics()
    from ray import tune

    from tune_rescon.training import recorded_epochs
    from tune_rescon.training.callbacks import Preempted
    from tune_rescon.training.device import device_name
    from tune_rescon.training.trial_files import trained_steps
    from tune_rescon.tuning.ray.multi_process import gathered

    folder = Path(task.checkpoint_dir)
    name = device_name(task.device)

    def report(epoch: EpochReport) -> None:
        sync.send(last=epoch.epoch == task.epochs)
        best = sync.kept(epoch.best_checkpoint) if epoch.best_checkpoint else None
        metrics = dict(epoch.metrics)
        tune.report(
            {
                "number": task.number,
                "epoch": epoch.epoch,
                "metrics": metrics,
                "checkpoint": best,
                "device": name,
            }
        )

    def note(text: str) -> None:
        tune.report({"number": task.number, "note": text})

    with synchronised(
        folder,
        task.checkpoint_url,
        names=_KEPT,
        progress=trained_steps,
        note=note,
    ) as sync:
        for owed in recorded_epochs(folder)[task.recorded :]:
            # A worker or driver that died between a checkpoint and its record owes that report.
            report(owed)
        with gathered(task) as peers, _told_to_leave(task) as leave:
            try:
                train_task(task, folder, peers, on_epoch=report, on_note=note, leave=leave)
            except Preempted as left:
                sync.send(last=True)
                return left
    return None


@contextmanager
def _told_to_leave(task: TrialTask) -> Iterator[Callable[[], bool]]:
    if task.workers > 1:
        yield never
        return
    with NOTICE.heeded(is_drained=node_is_drained) as told:
        yield told


def _go(task: TrialTask, left: Preempted) -> None:
    """End this process, and with it what Tune takes for the trial; the coordinator knows better."""
    from ray import tune

    # A report waits for the driver, which may be gone.
    patience = threading.Timer(_FAREWELL, os._exit, [1])
    patience.daemon = True
    patience.start()
    tune.report({"number": task.number, "note": messages.left(left.epoch, left.batches), "leaving": True})
    os._exit(1)


def _fate(error: Exception) -> TrialState:
    import torch

    return TrialState.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else TrialState.FAILED
