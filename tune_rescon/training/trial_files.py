"""A trial's files: its checkpoints, their metadata, and the point at which a trial resumes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, StorageError, counted, format_error, unknown_name_message
from tune_rescon.metric_names import (
    MetricAt,
    class_metric,
    custom_metric_name,
    is_extra_metric,
    objective_names,
)
from tune_rescon.models import NetworkDescription, description_from_dict
from tune_rescon.training.checkpoint import (
    CheckpointFolder,
    copy_to_host,
    is_intact,
    read_checkpoint,
    write_durably,
)
from tune_rescon.training.messages import EpochReport, OnMessage, expected_metrics
from tune_rescon.training.module import TrialModule
from tune_rescon.training.weights import TrainedNetwork, describe_trained, trained_values

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = [
    "CheckpointMetadata",
    "CheckpointWriter",
    "Objective",
    "ResumePoint",
    "epochs_in_checkpoint",
    "find_resume_point",
    "global_step",
    "read_best",
]


#: The fields that identify a trial, in CheckpointMetadata and in TrainedNetwork.
_IDENTITY: Final = ("config", "spec", "dataset", "seed")


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """A trial and its progress."""

    config: TrialConfig
    spec: NetworkDescription
    dataset: str
    """Content key of the dataset's images and their split."""
    seed: int
    epochs: int
    """Length of the whole training, which the schedule spans."""
    history: tuple[Mapping[str, float], ...] = ()
    """One mapping of metrics for each epoch. Its ``epoch_seconds`` exclude the writing of that epoch's
    checkpoint."""
    batches: int = 0
    """Batches of the next epoch that are trained already."""
    micro_batches: int = 1
    """Micro-batches of a batch, which a resumed trial keeps."""
    recomputes: bool = False
    """True for activation checkpointing, which a resumed trial keeps."""

    def extended(self, metrics: Mapping[str, float]) -> CheckpointMetadata:
        """Return the metadata with one more epoch."""
        return dataclasses.replace(self, history=(*self.history, dict(metrics)), batches=0)

    def check_own(self, found: CheckpointMetadata | TrainedNetwork) -> None:
        """Check that the metadata of a checkpoint, or of a trained network, belong to this trial.

        Raises:
            StorageError: ``found`` has another configuration, network, dataset, seed or length.
        """
        names = (*_IDENTITY, "epochs") if isinstance(found, CheckpointMetadata) else _IDENTITY
        # The file of a trained network has no passwords.
        one, two = (
            {name: getattr(trial, name) for name in names} | {"config": trial.config.without_passwords()}
            for trial in (self, found)
        )
        other = [name for name in names if one[name] != two[name]]
        if other:
            rule = "a trial can only resume from its own checkpoint"
            hint = "Give each trial its own checkpoint folder."
            raise StorageError(format_error(rule, got=f"one with another {', '.join(other)}", hint=hint))

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as plain values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "config": self.config.to_dict(),
            "spec": self.spec.to_dict(),
            "history": [dict(metrics) for metrics in self.history],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CheckpointMetadata:
        """Create the metadata from the values of :meth:`to_dict`.

        Raises:
            ConfigError, NetworkError: another version wrote the values.
        """
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "spec": description_from_dict(values["spec"]),
            "history": tuple(values["history"]),
        }
        return cls(**{**values, **nested})


def read_best(folder: CheckpointFolder) -> TrainedNetwork | None:
    """Return the description of the network in ``best.ckpt``; None if the file is absent or damaged.

    Raises:
        StorageError: the file is intact, but does not hold a trained network.
    """
    return describe_trained(folder.best) if is_intact(folder.best) else None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric of a trial, and the epoch whose network the trial keeps in ``best.ckpt``.

    Raises:
        ConfigError: ``metric`` is not an objective, or ``mode`` is unknown.
    """

    metric: str = "val_accuracy"
    """A metric of the test images means that the network is evaluated on these only, once, after its last
    epoch."""
    mode: str = "max"
    """``"max"`` or ``"min"``."""
    at: MetricAt = "best"
    """The epoch whose network is kept: ``"best"`` is the epoch with the best metric, ``"last"`` the last one
    with a finite metric."""
    log: tuple[str, ...] = ()
    """Further metrics of the validation images: keys of ``metric_names.EXTRA_METRICS``, names of
    ``metric_names.BY_CLASS``, ``METRIC/CLASS``, and functions as ``module:function``. See
    :mod:`tune_rescon.training.metrics`."""

    @property
    def extra(self) -> tuple[str, ...]:
        """The metrics of :attr:`log`, and the objective if it needs the class scores of all images."""
        own = [self.metric] if is_extra_metric(self.metric) else []
        return tuple(dict.fromkeys((*self.log, *own)))

    def __post_init__(self) -> None:
        """Check the names."""
        objectives = objective_names()
        known = (*objectives, *map(custom_metric_name, self.log))
        if self.metric not in known and class_metric(self.metric) is None:
            raise ConfigError(unknown_name_message("metric", self.metric, objectives))
        if self.mode not in ("max", "min"):
            raise ConfigError(format_error("a metric's mode must be max or min", got=repr(self.mode)))

    def is_better(self, value: float, best: float | None) -> bool:
        """Return whether ``value`` is better than ``best``, the best value so far, or None without one.

        A non-finite value is never better, and neither is an equal one.

        >>> Objective(mode="max").is_better(0.9, None), Objective(mode="max").is_better(0.8, 0.8)
        (True, False)
        """
        if not math.isfinite(value):
            return False
        if best is None:
            return True
        return value > best if self.mode == "max" else value < best


class CheckpointWriter:
    """Writes a trial's files.

    A network replaces the one in ``best.ckpt`` if its metric is better, or if the last network is kept. It is
    compared with the network in the file, even if a better one was reported and could not be written. If the
    network in the file does not have the metric, it is replaced.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        objective: Objective,
        *,
        best: TrainedNetwork | None,
        describe: Callable[[int, Mapping[str, float]], TrainedNetwork],
        background: bool = False,
    ) -> None:
        """Create the writer.

        Args:
            folder: the trial's checkpoint folder.
            objective: the metric by which networks are compared, and which network is kept.
            best: description of the network in ``best.ckpt``, if any.
            describe: called as ``describe(epoch, metrics)``; returns the description of an epoch's network.
            background: a thread writes an epoch's files while the next epoch's first steps run. Only for a
                trial of one process: several processes report an epoch together, after the same step.
        """
        self.background = background
        self._folder = folder
        self._best = best
        self._describe = describe
        self._objective = objective
        self._messages: Future[tuple[str, ...]] = Future()
        self._values: tuple[Mapping[str, Any] | None, Mapping[str, Any]] = None, {}

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint from which training would resume; None if the trial has none."""
        return self._folder.newest()

    @property
    def best_checkpoint(self) -> Path | None:
        """The file of the best network; None if the trial has none."""
        return self._folder.best if self._best else None

    def save(
        self,
        trainer: pl.Trainer,
        module: TrialModule,
        epoch: int,
        metrics: Mapping[str, float],
        *,
        background: bool = False,
    ) -> None:
        """Write ``best.ckpt`` if the network is to be kept, then ``last.ckpt``.

        :meth:`wait` returns a message for each file that could not be written.

        Args:
            trainer: holds the state that the checkpoint saves.
            module: holds the network.
            epoch: the epoch just trained, counted from 1.
            metrics: that epoch's.
            background: copy the state and let a thread write it, so that training can continue. The thread
                only reads the copies and writes files. :meth:`wait` frees the copies in the thread of its
                caller, because freeing pinned memory calls CUDA.
        """
        description = self._describe(epoch, metrics) if self._is_kept(metrics) else None
        best = None if description is None else trained_values(module.eval_network, description)
        self._values = best, self._state(trainer)
        if not background:
            self._messages = Future()
            self._messages.set_result(self._write(epoch, description))
            return
        self._values = copy_to_host(self._values)
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._messages = executor.submit(self._write, epoch, description)
        executor.shutdown(wait=False)  # the thread ends after the write

    @property
    def is_written(self) -> bool:
        """True if :meth:`wait` would return at once."""
        return self._messages.done()

    def wait(self) -> tuple[str, ...]:
        """Wait until the files of :meth:`save` are durable, or could not be written.

        Returns:
            A message for each file that could not be written.
        """
        try:
            return self._messages.result()
        finally:
            self._values = None, {}

    def save_mid_epoch(self, trainer: pl.Trainer, epoch: int, batches: int) -> tuple[str, ...]:
        """Write the checkpoint within an epoch.

        Args:
            trainer: holds the state that the checkpoint saves.
            epoch: the epoch, counted from 1.
            batches: batches of the epoch that are trained.

        Returns:
            A message for each file that could not be written.
        """
        try:
            write_durably(self._state(trainer), self._folder.last, previous=self._folder.previous)
        except OSError as error:
            position = f"{counted(batches, 'batch', 'batches')} of epoch {epoch}"
            return (f"the checkpoint after {position} could not be written ({_cause(error)})",)
        return ()

    def _state(self, trainer: pl.Trainer) -> Mapping[str, Any]:
        """Return the state of Lightning's checkpoint, collected by :class:`.CollectedCheckpoint`."""
        collected: list[Mapping[str, Any]] = []
        trainer.save_checkpoint(self._folder.last, storage_options=collected.append)
        return collected[0]

    def _is_kept(self, metrics: Mapping[str, float]) -> bool:
        """Return whether ``best.ckpt`` is to hold the network that has ``metrics``."""
        objective = self._objective
        best = self._best.metrics.get(objective.metric) if self._best and objective.at == "best" else None
        # A metric of the test images is absent before the last epoch.
        return objective.is_better(metrics.get(objective.metric, math.nan), best)

    def _write(self, epoch: int, description: TrainedNetwork | None) -> tuple[str, ...]:
        """Write the values of the best network, if there is a ``description``, and those of the checkpoint.

        Return a message for each file that could not be written.
        """
        best, last = self._values
        messages = []
        if best is not None:
            try:
                write_durably(best, self._folder.best)
                self._best = description
            except OSError as error:
                # Read the file itself, because the write may have failed after its rename.
                self._best = read_best(self._folder)
                kept = (
                    f"best.ckpt is still epoch {self._best.epoch}'s"
                    if self._best
                    else "there is no best.ckpt yet"
                )
                messages.append(f"epoch {epoch}'s network could not be written ({_cause(error)}); {kept}")
        try:
            write_durably(last, self._folder.last, previous=self._folder.previous)
        except OSError as error:
            failure = f"the checkpoint after epoch {epoch} could not be written ({_cause(error)})"
            messages.append(f"{failure}; training continues")
        return tuple(messages)


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The point at which a trial starts or resumes."""

    metadata: CheckpointMetadata
    checkpoint: Path | None = None
    """The checkpoint to resume from; None: start from the beginning."""
    best: TrainedNetwork | None = None
    """Description of the network in ``best.ckpt``; None if the file is absent or damaged."""


def find_resume_point(
    metadata: CheckpointMetadata, folder: CheckpointFolder | None, on_message: OnMessage
) -> ResumePoint:
    """Return the point at which the trial of ``metadata`` resumes from its folder.

    Args:
        metadata: the trial, before its first epoch.
        folder: its checkpoint folder, created if absent; None: the trial starts from the beginning.
        on_message: called with each message to the user, for example about a damaged file.

    Raises:
        StorageError: the folder cannot be created, or holds another trial's files.
    """
    if folder is None:
        return ResumePoint(metadata=metadata)
    folder.create()
    found = folder.recover()
    if found.path is not None:
        in_checkpoint = _read_metadata(found.path)
        metadata.check_own(in_checkpoint)
        metadata = in_checkpoint
    if found.damaged:
        files = "the last checkpoint was" if found.damaged == 1 else "both checkpoints were"
        epochs = len(metadata.history)
        on_message(f"{files} damaged; {f'resuming from epoch {epochs}' if epochs else 'starting over'}")
    best = read_best(folder)
    if best is not None:
        metadata.check_own(best)
    elif folder.best.exists():
        on_message("best.ckpt was damaged; the networks of the epochs before are lost")
    return ResumePoint(metadata=metadata, checkpoint=found.path, best=best)


def epochs_in_checkpoint(
    checkpoint_dir: Path, *, config: TrialConfig | None = None, seed: int | None = None
) -> tuple[EpochReport, ...]:
    """Return the reports of the epochs in the checkpoint from which ``train_trial`` would resume.

    The epochs are in order. A caller that crashed between the writing of an epoch's checkpoint and its report
    gets the report here. Damaged files are skipped as in ``train_trial``, but no file is moved. The
    ``epoch_seconds`` of these reports exclude the writing of the epoch's own checkpoint, and their paths are
    those of the current files.

    Args:
        checkpoint_dir: the folder of the trial's checkpoints.
        config: the trial's configuration. A checkpoint of another configuration, from which ``train_trial``
            refuses to resume, has no epochs of the trial. None accepts any configuration.
        seed: the trial's seed; None accepts any seed.
    """
    folder = CheckpointFolder(path=checkpoint_dir)
    found = folder.find()
    if found.path is None:
        return ()
    metadata = _read_metadata(found.path)
    if config not in (None, metadata.config) or seed not in (None, metadata.seed):
        return ()
    best = folder.best if read_best(folder) else None
    return tuple(
        EpochReport(
            epoch=epoch,
            # An earlier version did not measure all of the metrics.
            metrics={**dict.fromkeys(expected_metrics(metrics), math.nan), **metrics},
            checkpoint=found.path,
            best_checkpoint=best,
        )
        for epoch, metrics in enumerate(metadata.history, start=1)
    )


def global_step(checkpoint_dir: Path) -> int:
    """Return the number of training steps in the newest intact checkpoint; 0 if the folder has none."""
    found = CheckpointFolder(path=checkpoint_dir).find()
    return int(read_checkpoint(found.path)["global_step"]) if found.path else 0


def _read_metadata(checkpoint: Path) -> CheckpointMetadata:
    values = read_checkpoint(checkpoint)
    if "trial" not in values:
        rule = "a checkpoint to resume from must be one that a trial wrote"
        raise StorageError(format_error(rule, got="one without a trial's record", where=str(checkpoint)))
    try:
        return CheckpointMetadata.from_dict(values["trial"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        rule = "a checkpoint to resume from must be one that this version can read"
        got = f"one that another version wrote ({type(error).__name__}: {error})"
        raise StorageError(format_error(rule, got=got, where=str(checkpoint))) from error
