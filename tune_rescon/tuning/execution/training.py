"""The training of a trial's process: the only one, or one of several."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tune_rescon.config import DatasetConfig
from tune_rescon.tuning.execution.notice import never

if TYPE_CHECKING:
    from tune_rescon.data import ImageDataset
    from tune_rescon.training import EpochReport
    from tune_rescon.training.distributed import Peers
    from tune_rescon.tuning.execution.trial import TrialTask

__all__ = ["STALLS", "train_task"]

#: What ran out of memory on this node, beside its decoded images.
_OVERRUNS: Final = "out_of_memory.json"

#: Where a process stood that a recording of its training steps had not come back to, likewise: a folder.
STALLS: Final = "stalled"

#: What torch.compile has made on this node, there too.
_COMPILED: Final = "compiled"


def train_task(
    task: TrialTask,
    folder: Path,
    peers: Peers,
    *,
    on_epoch: Callable[[EpochReport], None],
    on_note: Callable[[str], None],
    leave: Callable[[], bool] = never,
) -> None:
    """Train as ``task`` says, with ``peers``, from what ``folder`` holds.

    Raises:
        Left: ``leave`` said so, and the trial is to go on in another process.
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
