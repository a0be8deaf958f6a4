"""One attempt at the rest of a trial: to its end, or until the device's memory was too small for a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from tune_rescon.config import MetricAt, is_test_metric
from tune_rescon.data import ImageDataModule, ImageDataset
from tune_rescon.data.resident import release
from tune_rescon.models import build_from_spec
from tune_rescon.training import notes
from tune_rescon.training.callbacks import (
    AverageWeights,
    Diverged,
    FiniteLoss,
    PreciseBatchNorm,
    SeedEpochs,
)
from tune_rescon.training.checkpoint import CheckpointFolder
from tune_rescon.training.compiling import choose_compiling
from tune_rescon.training.graphs import Recorder, RecordingError, choose_recorder
from tune_rescon.training.initial import read_initial
from tune_rescon.training.keeper import Keeper
from tune_rescon.training.leaving import LeaveWhenAsked, never
from tune_rescon.training.memory import count_peak, ran_out_of_memory
from tune_rescon.training.metrics import FinalMetrics
from tune_rescon.training.microbatches import twice_as_many
from tune_rescon.training.module import TrialModule
from tune_rescon.training.notes import OnNote
from tune_rescon.training.peers import ALONE, Peers
from tune_rescon.training.placement import Placement
from tune_rescon.training.randomness import seed_epoch
from tune_rescon.training.report import EpochReport
from tune_rescon.training.reporter import EpochReporter
from tune_rescon.training.stalls import StallWatch
from tune_rescon.training.start import Start
from tune_rescon.training.trained import TrainedNetwork
from tune_rescon.training.trainer import fit, make_trainer

__all__ = ["Attempt", "Retry"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How to go on where an attempt could not: without recorded steps, which only save time, and so."""

    micro_batches: int
    recomputes: bool
    note: str
    """For the user: why."""
    overrun: bool = False
    """Whether the attempt's steps, as they were, are too large for the memory."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The parts of a trial that has epochs left."""

    start: Start
    dataset: ImageDataset
    placement: Placement
    folder: CheckpointFolder | None
    metric: str
    mode: str
    keep: MetricAt = "best"
    """Which epoch's network is kept."""
    peers: Peers = ALONE
    leave: Callable[[], bool] = never
    record_steps: bool = True
    """Whether training steps may be recorded."""
    watch: StallWatch | None = None
    """Who watches whether a recording comes back."""

    @property
    def batch_images(self) -> int:
        """Images of the largest share of a training batch: what a process has to find memory for."""
        return self.peers.largest_share(min(self.start.record.config.batch_size, len(self.dataset.train)))

    def run(self, on_epoch: Callable[[EpochReport], None], on_note: OnNote) -> Retry | None:
        """Train from the start given to the end.

        Returns:
            None at the end; else what to try next. By then nothing refers to the network and its optimiser
            but cycles, which a garbage collection frees.

        Raises:
            torch.OutOfMemoryError: smaller micro-batches are no use.
        """
        record = self.start.record
        # What an attempt asked for that failed is not what the trial takes.
        count_peak(self.placement.device)
        data = ImageDataModule(
            self.dataset,
            record.config,
            image_size=record.spec.image_size,
            seed=record.seed,
            judged="test" if self._once else "val",
            share=self.peers.share,
            done=(len(record.history), record.batches),
        )
        compiling = self._compiling(on_note)
        module = self._module(len(data.train_dataloader()), compiling)
        keeper = self._keeper()
        reporter = EpochReporter(
            record,
            on_epoch,
            on_note,
            keeper=keeper,
            judged="test" if self._once else "val",
            peers=self.peers,
        )
        trainer = make_trainer(
            epochs=record.epochs,
            placement=self.placement,
            gradient_clip=record.config.gradient_clip,
            validate_every=record.epochs if self._once else 1,
            callbacks=[
                SeedEpochs(record.seed, self.peers.share.rank),
                AverageWeights(),
                FiniteLoss(),
                PreciseBatchNorm(record.config.precise_bn_batches, done=record.batches),
                reporter,
                LeaveWhenAsked(self.leave, keeper, on_note),
            ],
        )
        try:
            with self.peers.telling(Diverged):
                fit(trainer, module, data, self.start.checkpoint)
        except Diverged:
            reporter.report_diverged(module)
        except RuntimeError as error:
            return self._retry(error)
        if reporter.stopped_by is not None:
            raise reporter.stopped_by
        return None

    @property
    def recorder(self) -> Recorder | None:
        """What records its training steps, if anything does."""
        record = self.start.record
        if not self.record_steps:
            return None
        return choose_recorder(
            record.config,
            self.placement,
            micro_batches=record.micro_batches,
            recomputes=record.recomputes,
            watch=self.watch,
        )

    @property
    def _once(self) -> bool:
        """Whether the network is judged by the test images, after its last epoch."""
        return is_test_metric(self.metric)

    def _compiling(self, on_note: OnNote) -> bool:
        record = self.start.record
        compiling, less = choose_compiling(
            record.config.compile, self.placement.device, recomputes=record.recomputes
        )
        if less is not None:
            on_note(less)
        return compiling

    def _retry(self, error: RuntimeError) -> Retry:
        """First without what only saves time, then with what only costs time, then with less at once."""
        record, images = self.start.record, self.batch_images
        count, recomputes = record.micro_batches, record.recomputes
        if isinstance(error, RecordingError):
            return Retry(micro_batches=count, recomputes=recomputes, note=notes.unrecorded(str(error)))
        if not ran_out_of_memory(error):
            raise error
        if self.recorder is not None:
            note = notes.too_large_to_record(images)
            return Retry(micro_batches=count, recomputes=recomputes, note=note, overrun=True)
        if not recomputes and record.config.checkpoint_activations == "auto":
            note = notes.recomputing(images, pieces=count)
            return Retry(micro_batches=count, recomputes=True, note=note, overrun=True)
        more = twice_as_many(count, images=images)
        if more is not None:
            note = notes.smaller(images, before=count, after=more)
            return Retry(micro_batches=more, recomputes=recomputes, note=note, overrun=True)
        if self.peers.most(release(self.placement.device)):
            note = notes.without_images(images, pieces=count)
            return Retry(micro_batches=count, recomputes=recomputes, note=note)
        tried = f"a batch of {images} images" + (f" in {count} micro-batches" if count > 1 else "")
        raise torch.OutOfMemoryError(f"the memory is too small for {tried}: {error}") from error

    def _module(self, steps_per_epoch: int, compiling: bool) -> TrialModule:
        record = self.start.record
        seed_epoch(record.seed, 0)
        network = build_from_spec(record.spec)
        if self.start.checkpoint is None and record.config.init_from is not None:
            read_initial(record.config.init_from).put_into(network)
        return TrialModule(
            network,
            record.config,
            classes=self.dataset.classes,
            epochs=record.epochs,
            steps_per_epoch=steps_per_epoch,
            placement=self.placement,
            micro_batches=record.micro_batches,
            judging=FinalMetrics(self.dataset.class_names, peers=self.peers) if self._once else None,
            compiling=compiling,
            recomputes=record.recomputes,
            recorder=self.recorder,
            peers=self.peers,
        )

    def _keeper(self) -> Keeper | None:
        if self.folder is None or not self.peers.first:
            return None
        best = self.start.best
        return Keeper(
            self.folder, best=best, about=self._about, metric=self.metric, mode=self.mode, keep=self.keep
        )

    def _about(self, epoch: int, metrics: Mapping[str, float]) -> TrainedNetwork:
        record = self.start.record
        return TrainedNetwork(
            spec=record.spec,
            config=record.config,
            class_names=self.dataset.class_names,
            mean=self.dataset.mean,
            std=self.dataset.std,
            stored_side=self.dataset.stored_side,
            resize=self.dataset.resize,
            levels=self.dataset.levels,
            dataset=self.dataset.digest,
            seed=record.seed,
            epoch=epoch,
            metrics=metrics,
        )
