"""One attempt to train a trial to its last epoch. It ends early if a step runs out of device memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch

from tune_rescon.data import ImageDataModule, ImageDataset
from tune_rescon.data.batch_sources import SplitName, release
from tune_rescon.data.splits import balanced_class_weights
from tune_rescon.errors import counted
from tune_rescon.metric_names import is_test_metric
from tune_rescon.models import ExternalSpec, build_described
from tune_rescon.training import messages
from tune_rescon.training.callbacks import (
    AverageWeights,
    Diverged,
    EpochProgress,
    FiniteLoss,
    FreezeTrunk,
    PreciseBatchNorm,
    SeedEpochs,
    StopOnPreemption,
)
from tune_rescon.training.checkpoint import CheckpointFolder
from tune_rescon.training.compile import choose_compiling
from tune_rescon.training.cuda_graphs import CaptureError, GraphCapture, HangWatchdog, choose_graph_capture
from tune_rescon.training.device import DeviceConfig, seed_epoch
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.epoch_reporter import EpochReporter, StoppedByReport, sampled_utilisation
from tune_rescon.training.initial_weights import read_initial
from tune_rescon.training.memory import activation_checkpointing, ran_out_of_memory, reset_peak_memory
from tune_rescon.training.messages import EpochReport, OnMessage
from tune_rescon.training.metrics import FINAL_METRICS, EpochMetrics
from tune_rescon.training.microbatches import next_micro_batches
from tune_rescon.training.module import StepExecution, TrialModule, fit, make_trainer
from tune_rescon.training.trial_files import CheckpointWriter, Objective, ResumePoint
from tune_rescon.training.weights import TrainedNetwork

__all__ = ["FitAttempt", "Retry", "TrialProcess"]


@dataclass(frozen=True, kw_only=True)
class TrialProcess:
    """The process that trains a trial: its device, its peers, its callbacks, and the files of its node."""

    device: str = "auto"
    """``"auto"`` (CUDA if available), ``"cpu"`` or ``"cuda"``."""
    threads: int | None = None
    """CPU threads that torch may use during the training; None leaves the number unchanged."""
    on_message: OnMessage = messages.ignore
    """Called in the training's thread with one sentence for the user."""
    on_progress: Callable[[float], None] = messages.ignore
    """Called in the training's thread, every 15 seconds of an epoch, with the trained share of the epoch."""
    peers: ProcessGroup = SINGLE_PROCESS
    """The processes that train the trial together (:mod:`tune_rescon.training.distributed`).

    All of them call ``train_trial``, each with its own folder. Only the first one writes checkpoints.
    """
    is_preempted: Callable[[], bool] = messages.never
    """Called after each training batch except the last one of an epoch, and once at the epoch's end. If an
    epoch is not reported yet, it is reported first.

    If it returns True, the trial writes its state to ``last.ckpt``, also within an epoch, and ends. The next
    call of ``train_trial`` resumes with the next batch. It must not return True in a trial of several
    processes.
    """
    background_writes: bool | None = None
    """True if a thread writes an epoch's files while the first steps of the next epoch run. None: only on a
    GPU, which would be idle during the writing. A trial of several processes has no such thread."""
    gpu_reading: Callable[[], float] | None = None
    """Returns the utilisation of the GPU, 0..1; called once a second on a thread. None reads NVML if the
    package nvidia-ml-py is installed; a CPU trial reads nothing."""
    oom_records: Path | None = None
    """A file, created if absent, in which the trials of this node record steps that ran out of memory; None
    records nothing."""
    hang_folder: Path | None = None
    """A folder, created if absent, that the trials of this node share; None: a hanging CUDA graph is not
    ended.

    If the capture of a CUDA graph does not return within minutes, this process saves its stack traces in the
    folder and exits (code 1). Later trials of the same network on the same device then use no CUDA graphs.
    """


@dataclass(frozen=True, kw_only=True)
class Retry:
    """The settings with which to retry after a failed attempt.

    The retry does not capture its steps, because CUDA graphs only save time.
    """

    micro_batches: int
    recomputes: bool
    message: str
    """Why the attempt ended, as a message to the user."""
    out_of_memory: bool = False
    """True if the steps of the attempt, with its settings, need more memory than the device has."""


@dataclass(frozen=True, kw_only=True)
class FitAttempt:
    """An attempt to train a trial that has epochs left."""

    start: ResumePoint
    dataset: ImageDataset
    placement: DeviceConfig
    folder: CheckpointFolder | None
    objective: Objective
    process: TrialProcess
    batch_images: int
    """Images in the largest shard of a training batch; each process must have memory for them."""
    capture_steps: bool
    """True if training steps may be captured as a CUDA graph."""
    watchdog: HangWatchdog | None
    """The watchdog that ends this process if a capture hangs; None watches nothing."""

    @property
    def peers(self) -> ProcessGroup:
        """The processes that train the trial together."""
        return self.process.peers

    def run(self, on_epoch: Callable[[EpochReport], None]) -> Retry | None:
        """Train from ``start`` to the last epoch.

        Returns:
            None if the trial has ended; otherwise the settings to retry with. Before the retry, the caller
            must collect garbage: reference cycles still hold the network and its optimiser.

        Raises:
            torch.OutOfMemoryError: the memory is too small, and smaller micro-batches would not help.
        """
        with sampled_utilisation(self.placement.device, self.process.gpu_reading) as utilisation:
            return self._train(on_epoch, utilisation)

    def _train(
        self, on_epoch: Callable[[EpochReport], None], utilisation: Callable[[], float] | None
    ) -> Retry | None:
        # Reset the peak: the memory that a failed attempt used does not count as the trial's.
        reset_peak_memory(self.placement.device)
        with self.peers.propagate_errors():
            data = self._data()
            module = self._module(len(data.train_dataloader()), compiling=self._compiling())
        writer = self._writer()
        reporter = EpochReporter(
            self.start.metadata,
            on_epoch,
            self.process.on_message,
            writer=writer,
            eval_split=self._eval_split,
            peers=self.peers,
            utilisation=utilisation,
        )
        trainer = self._trainer(module, reporter, writer)
        try:
            with _last_epoch_reported(reporter), self.peers.propagate_errors(Diverged):
                fit(trainer, module, data, self.start.checkpoint)
        except StoppedByReport:
            assert reporter.stopped_by is not None
        except Diverged:
            if reporter.stopped_by is None:
                reporter.report_diverged(module)
        except RuntimeError as error:
            if reporter.stopped_by is None:
                return self._retry(error)
        if reporter.stopped_by is not None:
            raise reporter.stopped_by
        return None

    def _data(self) -> ImageDataModule:
        metadata = self.start.metadata
        return ImageDataModule(
            self.dataset,
            metadata.config,
            image_size=metadata.spec.image_size,
            seed=metadata.seed,
            eval_split=self._eval_split,
            shard=self.peers.shard,
            done=(len(metadata.history), metadata.batches),
        )

    def _trainer(
        self, module: TrialModule, reporter: EpochReporter, writer: CheckpointWriter | None
    ) -> pl.Trainer:
        metadata, process = self.start.metadata, self.process
        config, frozen = metadata.config, metadata.config.freeze_epochs
        return make_trainer(
            epochs=metadata.epochs,
            placement=self.placement,
            gradient_clip=config.gradient_clip,
            validate_every=metadata.epochs if self._on_test_images else 1,
            scaler=module.scaler,
            callbacks=[
                SeedEpochs(metadata.seed, self.peers.shard.rank),
                FreezeTrunk(frozen),
                AverageWeights(),
                FiniteLoss(),
                PreciseBatchNorm(config.precise_bn_batches, done=metadata.batches, frozen=frozen),
                EpochProgress(process.on_progress),
                reporter,
                StopOnPreemption(
                    process.is_preempted, writer, process.on_message, report_pending=reporter.report_pending
                ),
            ],
        )

    @property
    def graph_capture(self) -> GraphCapture | None:
        """The capture of the training steps; None if they run eagerly."""
        metadata = self.start.metadata
        if not self.capture_steps:
            return None
        return choose_graph_capture(
            metadata.config,
            self.placement,
            micro_batches=metadata.micro_batches,
            recomputes=metadata.recomputes,
            watchdog=self.watchdog,
        )

    @property
    def _on_test_images(self) -> bool:
        """True if the network is evaluated only once, on the test images after its last epoch."""
        return is_test_metric(self.objective.metric)

    @property
    def _eval_split(self) -> SplitName:
        """The split that validations evaluate."""
        return "test" if self._on_test_images else "val"

    def _compiling(self) -> bool:
        metadata = self.start.metadata
        compiling, problem = choose_compiling(
            metadata.config.compile, self.placement.device, recomputes=metadata.recomputes
        )
        if problem is not None:
            self.process.on_message(problem)
        return compiling

    def _retry(self, error: RuntimeError) -> Retry:
        """Return the settings to retry with. The cheapest change comes first.

        First drop CUDA graphs, which only save time. Then turn activation checkpointing on, which only costs
        time. Then halve the micro-batches. Last, free the dataset's images on the device.
        """
        metadata, images, count = self.start.metadata, self.batch_images, self.start.metadata.micro_batches
        retry = functools.partial(Retry, micro_batches=count, recomputes=metadata.recomputes)
        batch = f"a batch of {counted(images, 'image')}"
        if isinstance(error, CaptureError):
            return retry(message=f"no CUDA graph here ({error}); training continues without")
        if not ran_out_of_memory(error):
            raise error
        if self.graph_capture is not None:
            message = f"a CUDA graph of {batch} leaves too little memory; training continues without"
            return retry(message=message, out_of_memory=True)
        if not metadata.recomputes and activation_checkpointing(metadata.config, metadata.spec) == "auto":
            message = messages.ran_out(images, count, then="with activation checkpointing")
            return retry(recomputes=True, message=message, out_of_memory=True)
        more = next_micro_batches(count, images=images)
        if more is not None:
            message = messages.ran_out(
                images, count, then=f"in {more} micro-batches of {messages.sizes(images, more)}"
            )
            return retry(micro_batches=more, message=message, out_of_memory=True)
        if self.peers.all_reduce_max(release(self.placement.device)):
            message = messages.ran_out(images, count, then="with the dataset no longer on the device")
            return retry(message=message)
        tried = batch + (f" in {count} micro-batches" if count > 1 else "")
        raise torch.OutOfMemoryError(f"the memory is too small for {tried}: {error}") from error

    def _module(self, steps_per_epoch: int, *, compiling: bool) -> TrialModule:
        metadata, config = self.start.metadata, self.start.metadata.config
        seed_epoch(metadata.seed, 0)
        is_new = self.start.checkpoint is None
        network = build_described(metadata.spec, pretrained=is_new and config.pretrained)
        if is_new and config.init_from is not None:
            external = isinstance(metadata.spec, ExternalSpec)
            weights = read_initial(config.init_from, external=external)
            weights.load_into(network, metadata.spec, self.dataset.class_names)
        class_weights = None
        if config.class_weights != "none":
            class_weights = balanced_class_weights(self.dataset.train.labels_N, self.dataset.classes)
        return TrialModule(
            network,
            config,
            StepExecution(
                placement=self.placement,
                micro_batches=metadata.micro_batches,
                compiling=compiling,
                recomputes=metadata.recomputes,
                graph_capture=self.graph_capture,
                class_weights=class_weights,
            ),
            classes=self.dataset.classes,
            epochs=metadata.epochs,
            steps_per_epoch=steps_per_epoch,
            eval_metrics=self._eval_metrics(),
            peers=self.peers,
        )

    def _eval_metrics(self) -> EpochMetrics:
        return EpochMetrics(
            self.dataset.classes,
            top5=True,
            extra=FINAL_METRICS if self._on_test_images else self.objective.extra,
            class_names=self.dataset.class_names,
            peers=self.peers,
        )

    def _writer(self) -> CheckpointWriter | None:
        if self.folder is None or not self.peers.first:
            return None
        asked = self.process.background_writes
        background = self.placement.device.type == "cuda" if asked is None else asked
        return CheckpointWriter(
            self.folder,
            self.objective,
            best=self.start.best,
            describe=self._describe,
            background=background and self.peers.alone,
        )

    def _describe(self, epoch: int, metrics: Mapping[str, float]) -> TrainedNetwork:
        metadata = self.start.metadata
        return TrainedNetwork(
            spec=metadata.spec,
            config=metadata.config,
            class_names=self.dataset.class_names,
            mean=self.dataset.mean,
            std=self.dataset.std,
            stored_side=self.dataset.stored_side,
            resize=self.dataset.resize,
            interpolation=self.dataset.interpolation,
            levels=self.dataset.levels,
            dataset=self.dataset.digest,
            seed=metadata.seed,
            epoch=epoch,
            metrics=metrics,
        )


@contextlib.contextmanager
def _last_epoch_reported(reporter: EpochReporter) -> Iterator[None]:
    """If the block fails while a thread still writes an epoch's files, report that epoch.

    After a BaseException such as KeyboardInterrupt, only wait for the files: the resumed trial reports the
    epoch.
    """
    try:
        yield
    except BaseException as error:
        reporter.finish_pending(report=isinstance(error, Exception))
        raise
