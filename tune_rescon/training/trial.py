"""One trial, from its configuration to its last epoch. Usable from a notebook, a thread or a Ray worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tune_rescon.config import METRICS, TrialConfig, metric_mode
from tune_rescon.data import ImageDataModule, ImageDataset
from tune_rescon.errors import ConfigError, StorageError, explain, unknown_name
from tune_rescon.models import build_from_spec, resolve_network
from tune_rescon.training.callbacks import AverageWeights, Diverged, FiniteLoss, PreciseBatchNorm, SeedEpochs
from tune_rescon.training.checkpoint import CheckpointFolder, read_checkpoint
from tune_rescon.training.module import TrialModule
from tune_rescon.training.placement import Placement, place
from tune_rescon.training.randomness import own_generator, seed_epoch
from tune_rescon.training.record import TrialRecord
from tune_rescon.training.report import EpochReport
from tune_rescon.training.reporter import EpochReporter
from tune_rescon.training.trained import TrainedNetwork, save_trained
from tune_rescon.training.trainer import fit, make_trainer

__all__ = ["recorded_epochs", "train_trial"]


def train_trial(
    config: TrialConfig,
    dataset: ImageDataset,
    *,
    epochs: int,
    seed: int,
    checkpoint_dir: Path | None,
    on_epoch: Callable[[EpochReport], None],
    device: str = "auto",
    threads: int | None = None,
    metric: str = "val_accuracy",
    mode: str = "max",
) -> None:
    """Train ``config`` for ``epochs`` epochs, going on from ``checkpoint_dir`` if it holds a checkpoint.

    Each epoch is trained, validated, written to ``last.ckpt``, and only then given to ``on_epoch``. A trial
    that was interrupted and goes on reports, to the last bit on a CPU, what it would have reported without
    (times apart). One that has no epoch left returns without a report; :func:`recorded_epochs` tells what
    was reported before. A training loss that is not finite ends the trial after one report with nan.

    Args:
        config: all hyperparameters.
        dataset: images, decoded and split.
        epochs: length of the whole training, over which the schedule is laid.
        seed: of weights, order, augmentation and dropped paths.
        checkpoint_dir: a folder of this trial's own, made if absent; None keeps nothing.
        on_epoch: called in this thread; an exception from it ends the training and comes out unchanged.
        device: "auto" (CUDA if there is one), "cpu", "cuda".
        threads: CPU threads torch may use meanwhile; None leaves them.
        metric: the metric whose ``mode`` ("max", "min") decides which network ``best.ckpt`` holds.
        mode: see ``metric``.

    Raises:
        ConfigError: ``metric`` is not an objective, or ``mode`` is no mode.
        NetworkError: there is no such network.
        ResourceError: there is no such device.
        StorageError: ``checkpoint_dir`` cannot be made, or holds another trial's checkpoint.
    """
    _check_objective(metric, mode)
    spec = resolve_network(config, classes=dataset.classes, in_channels=dataset.channels)
    record = TrialRecord(config=config, spec=spec, dataset=dataset.digest, seed=seed, epochs=epochs)
    placement = place(device, precision=config.precision)
    folder = None if checkpoint_dir is None else CheckpointFolder(path=checkpoint_dir)
    checkpoint = _newest(folder)
    if checkpoint is not None:
        record = record.continued(_read_record(checkpoint))
    if len(record.history) < epochs:
        with placement.active(threads), own_generator(placement.device):
            trial = _Trial(dataset=dataset, record=record, placement=placement, folder=folder)
            trial.run(on_epoch, checkpoint, metric=metric, mode=mode)


def recorded_epochs(checkpoint_dir: Path) -> tuple[EpochReport, ...]:
    """The epochs a checkpoint folder's last checkpoint has behind it, oldest first; none if there is none.

    For a caller that went down between the writing of an epoch's checkpoint and its report. In these,
    ``epoch_seconds`` leaves out the writing of the epoch's own checkpoint.
    """
    folder = CheckpointFolder(path=checkpoint_dir)
    newest = folder.newest_intact()
    history = _read_record(newest).history if newest else ()
    best = folder.best if folder.best.exists() else None
    return tuple(
        EpochReport(epoch=epoch, metrics=metrics, checkpoint=newest, best_checkpoint=best)
        for epoch, metrics in enumerate(history, start=1)
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The parts of a trial that has epochs left."""

    dataset: ImageDataset
    record: TrialRecord
    placement: Placement
    folder: CheckpointFolder | None

    def run(
        self, on_epoch: Callable[[EpochReport], None], checkpoint: Path | None, *, metric: str, mode: str
    ) -> None:
        config, seed = self.record.config, self.record.seed
        data = ImageDataModule(self.dataset, config, image_size=self.record.spec.image_size, seed=seed)
        module = self._module(len(data.train_dataloader()))

        def save_best(epoch: int, metrics: dict[str, float]) -> None:
            assert self.folder is not None
            save_trained(module.judged, self._about(epoch, metrics), self.folder.best)

        reporter = EpochReporter(
            self.record, on_epoch, folder=self.folder, save_best=save_best, metric=metric, mode=mode
        )
        trainer = make_trainer(
            epochs=self.record.epochs,
            placement=self.placement,
            gradient_clip=config.gradient_clip,
            callbacks=[
                SeedEpochs(seed),
                AverageWeights(),
                FiniteLoss(),
                PreciseBatchNorm(config.precise_bn_batches),
                reporter,
            ],
        )
        try:
            fit(trainer, module, data, checkpoint)
        except Diverged:
            reporter.report_diverged(module)
        if reporter.stopped_by is not None:
            raise reporter.stopped_by

    def _module(self, steps_per_epoch: int) -> TrialModule:
        seed_epoch(self.record.seed, 0)
        return TrialModule(
            build_from_spec(self.record.spec),
            self.record.config,
            classes=self.dataset.classes,
            epochs=self.record.epochs,
            steps_per_epoch=steps_per_epoch,
            placement=self.placement,
        )

    def _about(self, epoch: int, metrics: dict[str, float]) -> TrainedNetwork:
        return TrainedNetwork(
            spec=self.record.spec,
            config=self.record.config,
            class_names=self.dataset.class_names,
            mean=self.dataset.mean,
            std=self.dataset.std,
            dataset=self.dataset.digest,
            seed=self.record.seed,
            epoch=epoch,
            metrics=metrics,
        )


def _check_objective(metric: str, mode: str) -> None:
    objectives = [name for name in METRICS if metric_mode(name)]
    if metric not in objectives:
        raise ConfigError(unknown_name("metric", metric, objectives))
    if mode not in ("max", "min"):
        raise ConfigError(explain("a metric's mode must be max or min", got=repr(mode)))


def _newest(folder: CheckpointFolder | None) -> Path | None:
    if folder is None:
        return None
    folder.create()
    return folder.recover()


def _read_record(checkpoint: Path) -> TrialRecord:
    values = read_checkpoint(checkpoint)
    if "trial" not in values:
        rule = "a checkpoint to go on from must be one a trial wrote"
        raise StorageError(explain(rule, got="one without a trial's record", where=str(checkpoint)))
    return TrialRecord.from_dict(values["trial"])
