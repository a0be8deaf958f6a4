"""Run one trial in a worker process, which Ray keeps for the next trial.

The driver imports this module to send the function by reference, and the workers import it to run the
function. Therefore the module imports no heavy library before a trial runs.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import platform
import queue
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.errors import OtherImagesError, ResourceError, format_error
from tune_rescon.metric_names import MetricAt
from tune_rescon.training import messages
from tune_rescon.tuning.ray.preemption import PREEMPTION, node_is_drained

if TYPE_CHECKING:
    from tune_rescon.data import ImageDataset
    from tune_rescon.storage import CheckpointMirror
    from tune_rescon.training import EpochReport
    from tune_rescon.training.callbacks import Preempted
    from tune_rescon.training.distributed import ProcessGroup

__all__ = [
    "HANG_FOLDER",
    "CheckpointSync",
    "TrialTask",
    "check_images",
    "on_one_thread",
    "run_trial",
    "synchronised",
    "train_task",
]


#: The files of a trial that are copied if the storage is a URL, in the order they are written.
_COPIED_FILES: Final = ("best.ckpt", "last.ckpt")

#: Seconds that a preempted process waits for the driver to receive its last report before it exits.
_LAST_REPORT_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """The description of a trial for a worker.

    It holds plain values only, because it is sent to another process as Tune's config dict.
    """

    number: int
    config: TrialConfig
    dataset: DatasetConfig
    epochs: int
    """Epochs of the whole schedule (``fidelity.max``)."""
    seed: int
    metric: str
    mode: str
    at: MetricAt = "best"
    """The epoch whose network the trial keeps (``metric.at``)."""
    log: tuple[str, ...] = ()
    """Further metrics to report (``metric.log``)."""
    epochs_in_study: int
    """Number of epochs in the study. A worker whose checkpoint has more epochs must report the others."""
    checkpoint_dir: str
    checkpoint_url: str | None
    """URL to which the checkpoints are copied; None if ``checkpoint_dir`` is in the storage itself."""
    data_root: str
    cache_root: str
    threads: int
    """CPU threads of each training process."""
    workers: int = 1
    """World size: the number of processes that train the trial together."""
    device: str
    """``"cuda"`` if the trial has a GPU, else ``"cpu"``."""
    images: str | None = None
    """Digest of the images and splits with which the search began; None: they are not checked."""

    def to_dict(self) -> dict[str, Any]:
        """Return Tune's config dict of the trial."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialTask:
        """Create a task from Tune's config dict."""
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "dataset": DatasetConfig(**values["dataset"]),
        }
        return cls(**{**values, **nested})


def run_trial(config: dict[str, Any]) -> None:
    """Train the trial ``config`` (a :class:`TrialTask` as a dict) and report to Tune after each epoch.

    An exception is reported as the trial's end and is not raised. Tune would retry a trial that raises, but a
    fault of the configuration would occur every time. Only a trial whose worker process died is retried, so a
    preempted worker writes a checkpoint and ends its process. A fault of the machine ends the whole search:
    torch cannot use the GPU that the trial was given, or the images are not those of the search.
    """
    on_one_thread(functools.partial(_run, TrialTask.from_dict(config)))


def _run(task: TrialTask) -> None:
    from ray import tune

    try:
        preemption = _train(task)
    except Exception as error:
        end = {"number": task.number, "state": _end_state(error).value, "error": traceback.format_exc()}
        if isinstance(error, ResourceError | OtherImagesError):
            # The machine is at fault, not the trial. Its next trials would fail in the same way.
            end["unusable"] = str(error)
        tune.report(end)
    else:
        if preemption is not None:
            _exit_preempted(task, preemption)


def _train(task: TrialTask) -> Preempted | None:
    from tune_rescon.lazy import import_lean_torchmetrics

    # First, because Lightning would otherwise import all of torchmetrics.
    import_lean_torchmetrics()
    from ray import tune

    from tune_rescon.training import epochs_in_checkpoint
    from tune_rescon.training.callbacks import Preempted
    from tune_rescon.training.device import device_name
    from tune_rescon.training.trial_files import global_step
    from tune_rescon.tuning.ray.multi_process import process_group

    folder = Path(task.checkpoint_dir)
    name = device_name(task.device)

    def report(epoch: EpochReport) -> None:
        sync.send(last=epoch.epoch == task.epochs)
        tune.report(
            {
                "number": task.number,
                "epoch": epoch.epoch,
                "metrics": dict(epoch.metrics),
                "checkpoint": sync.location(epoch.best_checkpoint) if epoch.best_checkpoint else None,
                "device": name,
            }
        )

    def note(text: str) -> None:
        tune.report({"number": task.number, "note": text})

    def progress(share: float) -> None:
        tune.report({"number": task.number, "progress": share})

    url = task.checkpoint_url
    with synchronised(folder, url, names=_COPIED_FILES, progress=global_step, note=note) as sync:
        # Report the epochs that only the checkpoint has, because a process died before they were recorded.
        trained = epochs_in_checkpoint(folder, config=task.config, seed=task.seed)
        for epoch in trained[task.epochs_in_study :]:
            report(epoch)
        with process_group(task) as peers, _watched_for_preemption(task) as is_preempted:
            try:
                train_task(
                    task,
                    folder,
                    peers,
                    on_epoch=report,
                    on_message=note,
                    on_progress=progress,
                    is_preempted=is_preempted,
                )
            except Preempted as preemption:
                sync.send(last=True)
                return preemption
    return None


@contextmanager
def _watched_for_preemption(task: TrialTask) -> Iterator[Callable[[], bool]]:
    if task.workers > 1:
        # A trial of several processes is not preempted: all of them would have to stop after the same batch.
        yield messages.never
        return
    with PREEMPTION.installed(is_drained=node_is_drained) as is_preempted:
        yield is_preempted


def _exit_preempted(task: TrialTask, preemption: Preempted) -> None:
    """End this process after a preemption.

    To Tune, the trial has failed with its process. The report below tells the coordinator that the worker was
    preempted and its trial is in a checkpoint, so that the coordinator runs the trial again.
    """
    from ray import tune

    # tune.report waits for the driver, which may have ended.
    deadline = threading.Timer(_LAST_REPORT_SECONDS, os._exit, [1])
    deadline.daemon = True
    deadline.start()
    tune.report({"number": task.number, "note": str(preemption), "preempted": True})
    os._exit(1)


def _end_state(error: Exception) -> TrialState:
    import torch

    return TrialState.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else TrialState.FAILED


@dataclass(frozen=True)
class CheckpointSync:
    """Copies a trial's checkpoints to the storage. No method raises: a late copy must not end the trial."""

    mirror: CheckpointMirror | None
    """Copies files to a URL; None: the trial's folder is in the storage itself."""

    def send(self, *, last: bool) -> None:
        """Copy the files written since the last call. ``last`` is True if no epoch follows this one."""
        if self.mirror is not None:
            self.mirror.send(retry=last)

    def location(self, path: Path) -> str | None:
        """Return the path or URL at which any machine can read a file; None if only this node has it."""
        return str(path) if self.mirror is None else self.mirror.url(path.name)


@contextmanager
def synchronised(
    folder: Path,
    url: str | None,
    *,
    names: Sequence[str],
    progress: Callable[[Path], int],
    note: Callable[[str], None],
) -> Iterator[CheckpointSync]:
    """Keep a trial's checkpoints in ``folder`` within the block, restored from and copied to ``url``.

    At the start, ``folder`` gets the copy with more progress, from this node or from ``url``.

    Args:
        folder: The folder of the trial's checkpoints. With a URL, its parent belongs to this run of the
            search.
        url: The URL of the storage; None if ``folder`` is in the storage itself.
        names: The files to copy, in the order they are written.
        progress: Returns the progress of the trial in a folder, in any unit.
        note: Called with a message when a copy fails.

    Raises:
        StorageError: If this node cannot use the URL at all, because a package is missing.
    """
    if url is None:
        yield CheckpointSync(None)
        return
    from tune_rescon.storage import CheckpointMirror, RemoteFolder, StorageUrl

    _delete_other_runs(folder.parent)
    remote = RemoteFolder.connect(StorageUrl(url=url))
    mirror = CheckpointMirror(local=folder, remote=remote, names=names, note=note)
    mirror.fetch(progress)
    try:
        yield CheckpointSync(mirror)
    finally:
        mirror.release()


def _delete_other_runs(run: Path) -> None:
    """Delete the folders that earlier runs of the search left on this node when their workers were killed."""
    if run.parent.is_dir():
        for other in run.parent.iterdir():
            if other != run:
                shutil.rmtree(other, ignore_errors=True)


#: File in the cache, beside the decoded images: the training steps that ran out of memory on this node.
_OOM_RECORDS: Final = "out_of_memory.json"

#: Folder in the cache: the stack traces of processes that hung while they captured a CUDA graph.
HANG_FOLDER: Final = "stalled"

#: Folder in the cache: the code that torch.compile has generated on this node.
_COMPILED: Final = "compiled"


def train_task(
    task: TrialTask,
    folder: Path,
    peers: ProcessGroup,
    *,
    on_epoch: Callable[[EpochReport], None],
    on_message: Callable[[str], None],
    on_progress: Callable[[float], None] = messages.ignore,
    is_preempted: Callable[[], bool] = messages.never,
) -> None:
    """Train a trial in this process, resuming from the checkpoint in ``folder`` if one exists.

    Args:
        task: The trial.
        folder: The folder of the trial's checkpoints.
        peers: The processes that train the trial together.
        on_epoch: Called with the report of each epoch.
        on_message: Called with each message about the trial.
        on_progress: Called during a long epoch with the share of it that has been trained.
        is_preempted: Polled during training; returns True if this process must end.

    Raises:
        Preempted: If ``is_preempted`` returned True; the trial is to continue in another process.
    """
    from tune_rescon.training import Objective, TrialProcess, train_trial
    from tune_rescon.training.compile import use_compile_cache

    freeze_imports()
    dataset = _dataset(task.dataset, task.data_root, task.cache_root)
    check_images(dataset, task.images, name=task.dataset.name)
    if task.config.compile != "off":
        use_compile_cache(Path(task.cache_root) / _COMPILED)
    train_trial(
        task.config,
        dataset,
        epochs=task.epochs,
        seed=task.seed,
        checkpoint_dir=folder,
        on_epoch=on_epoch,
        objective=Objective(metric=task.metric, mode=task.mode, at=task.at, log=task.log),
        process=TrialProcess(
            device=task.device,
            threads=task.threads,
            on_message=on_message,
            on_progress=on_progress,
            peers=peers,
            is_preempted=is_preempted,
            oom_records=Path(task.cache_root) / _OOM_RECORDS,
            hang_folder=Path(task.cache_root) / HANG_FOLDER,
        ),
    )


@functools.cache
def freeze_imports() -> None:
    """Exclude the imported libraries from garbage collection, once per process.

    A garbage collection runs before each trial. The libraries' half a million objects make it take 0.3 s;
    without them it takes a tenth of that.
    """
    gc.collect()
    gc.freeze()


@functools.lru_cache(maxsize=2)
def _dataset(dataset: DatasetConfig, data_root: str, cache_root: str) -> ImageDataset:
    # Cached per process, so that the next trial of a reused actor does not open the dataset again.
    from tune_rescon.data import open_dataset

    return open_dataset(dataset, data_root=Path(data_root), cache_root=Path(cache_root))


def check_images(dataset: ImageDataset, expected: str | None, *, name: str) -> None:
    """Check that this machine has the images and splits with which the search began.

    Images may change while a search runs, and machines of a cluster may have different copies. The values of
    trials on different validation images cannot be compared.

    Args:
        dataset: The images of this machine.
        expected: The digest of the search's images; None checks nothing.
        name: The dataset's name.

    Raises:
        OtherImagesError: If the images differ.
    """
    if expected in (None, dataset.digest):
        return
    parts = ("train", "val", "test")
    counts = ", ".join(f"{part} {len(getattr(dataset, part))}" for part in parts)
    rule = "every trial of a search must have the images and splits with which the search began"
    hint = (
        "Put the same images on every machine (the same version of Pillow decodes them alike), then resume."
        " To search the images as they are now, begin a search of another --name with --warm-start."
    )
    got = f"other images in {name} on {platform.node()} ({counts})"
    raise OtherImagesError(format_error(rule, got=got, where="dataset", hint=hint))


_Result = TypeVar("_Result")

_WORK_QUEUE: Final[queue.SimpleQueue[tuple[Callable[[], object], Future[object]]]] = queue.SimpleQueue()
_START_LOCK: Final = threading.Lock()


def on_one_thread(work: Callable[[], _Result]) -> _Result:
    """Run ``work`` on this process's one trial thread, after all earlier work, and return its result.

    Raises:
        BaseException: The exception that ``work`` raises, including ``SystemExit``, with which Tune ends a
            trial.
    """
    done: Future[_Result] = Future()
    with _START_LOCK:
        _start_thread()
    _WORK_QUEUE.put((work, done))  # type: ignore[arg-type]  # of any result
    return done.result()


@functools.cache
def _start_thread() -> None:
    # A daemon thread, unlike an executor's, so that a process can end without waiting for a trial.
    threading.Thread(target=_serve, name="trials", daemon=True).start()


def _serve() -> None:
    while True:
        # In a separate frame, so that no reference to finished work is kept until the next work arrives.
        _do(*_WORK_QUEUE.get())


def _do(work: Callable[[], object], done: Future[object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
