"""The reports of a trial's epochs, made in Lightning's hooks, and the utilisation of the GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from typing_extensions import override

from tune_rescon.metric_names import (
    CHECKPOINT_SECONDS,
    FIRST_STEP_SECONDS,
    GPU_UTILISATION,
    PEAK_MEMORY,
    VALIDATION_SECONDS,
)
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.memory import peak_memory_mb
from tune_rescon.training.messages import EpochReport, OnMessage
from tune_rescon.training.module import TrialModule
from tune_rescon.training.trial_files import CheckpointMetadata, CheckpointWriter

__all__ = ["PERIOD", "EpochReporter", "StoppedByReport", "nvml_reading", "sampled_utilisation"]


class StoppedByReport(Exception):  # noqa: N818 - a message to FitAttempt.run, not an error
    """The report of the previous epoch has ended the trial; the running epoch is discarded."""


class EpochReporter(Callback):
    """Measure each epoch, write its files, and report it.

    At the end of an epoch it writes ``best.ckpt`` if the network is to be kept, then ``last.ckpt``, and then
    reports. After a crash before ``last.ckpt`` is written, the epoch is trained again, with the same values.
    After a crash between ``last.ckpt`` and the report, the report is made from the checkpoint's metadata. The
    reporter comes after all callbacks that change the network.

    A thread may write the files while the next epoch's first steps run. The epoch is then reported at the end
    of the first step after the thread has finished or failed. If the report ends the trial, the steps of the
    next epoch are discarded: they change no file and no report.
    """

    def __init__(
        self,
        metadata: CheckpointMetadata,
        on_epoch: Callable[[EpochReport], None],
        on_message: OnMessage,
        *,
        writer: CheckpointWriter | None,
        eval_split: str = "val",
        peers: ProcessGroup = SINGLE_PROCESS,
        utilisation: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Create the callback.

        Args:
            metadata: the trial and its epochs so far.
            on_epoch: called with the report of each epoch.
            on_message: called with each message to the user.
            writer: writes the files; None writes none.
            eval_split: the split that is evaluated: ``"val"``, or ``"test"``, which is evaluated only once.
            peers: the processes of the trial, each of which has a reporter. If the first one's report ends
                the trial, the trial ends in all of them.
            utilisation: returns the mean utilisation of the GPU since the last call, 0..1, or nan. None for a
                CPU trial, which reports none of ``GPU_METRICS``.
            clock: returns seconds.
        """
        self.metadata = metadata
        self.stopped_by: BaseException | None = None
        """The exception of a report, which ends the trial; None if no report has raised."""
        self._background = writer is not None and writer.background
        self._pending: dict[str, float] | None = None  # the metrics of an epoch that is not reported yet
        self._utilisation = utilisation
        self._on_epoch, self._on_message = on_epoch, on_message
        self._writer = writer
        self._eval_split = eval_split
        self._peers = peers
        self._clock = clock
        self._started = self._trained = self._entered = clock()
        self._training_started = self._started  # moved later by the time of other work
        self._eval_started = self._eval_seconds = 0.0
        self._images = self._eval_images = 0
        self._learning_rate = math.nan
        self._is_first_step = True
        self._first_step_seconds: float | None = None

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the trial's identity and history, and the state of an unfinished epoch."""
        assert isinstance(pl_module, TrialModule)
        checkpoint["trial"] = self.metadata.to_dict()
        checkpoint["epoch_so_far"] = {
            "seconds": self._clock() - self._started,
            "trained_seconds": self._trained - self._training_started,
            "images": self._images,
            "train_metrics": pl_module.train_metrics.sums(),
        }

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state of an unfinished epoch.

        If the epoch was finished, this has no effect, because the start of the next epoch resets the state.
        An unfinished epoch was trained in a single process. If several processes resume it, only the first
        one restores its images and metrics, because they are summed over all processes.
        """
        assert isinstance(pl_module, TrialModule)
        if so_far := checkpoint.get("epoch_so_far"):
            self._entered = self._trained = self._clock()
            self._started = self._entered - so_far["seconds"]
            self._training_started = self._entered - so_far["trained_seconds"]
            if self._peers.first:
                self._images = so_far["images"]
                pl_module.train_metrics.resume_from(so_far["train_metrics"])

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._training_started = self._trained = self._entered = self._clock()
        self._images = 0

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the learning rate of this step, without the classifier's factor.

        It is read here, because after a step the optimiser already has the next step's learning rate.
        """
        rate, factor = trainer.optimizers[0].param_groups[0]["lr"], self.metadata.config.classifier_lr_mult
        self._learning_rate = float(rate) / factor

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, read the clock, and report the previous epoch once its files are written.

        After the epoch's last batch a GPU has finished, because FiniteLoss has read the epoch's loss.

        Raises:
            StoppedByReport: the previous epoch's report ended the trial.
        """
        if self._pending is not None and self._writer is not None and self._writer.is_written:
            began = self._clock()
            self.report_pending()
            self._training_started += self._clock() - began
        self.metadata = dataclasses.replace(self.metadata, batches=batch_idx + 1)
        self._images += len(batch[0])
        self._trained = self._clock()
        if self._is_first_step:
            self._is_first_step, self._first_step_seconds = False, self._trained - self._entered

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the clock. Batch norm's statistics are re-estimated already."""
        self._eval_started, self._eval_images = self._clock(), 0

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._eval_images += len(batch[0])

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the seconds of the evaluation. For test images, wait for the GPU first."""
        if self._eval_split == "test" and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._eval_seconds = self._clock() - self._eval_started

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's files and report it, after its validation.

        Raises:
            StoppedByReport: the report of the previous epoch, which was still pending, ended the trial.
        """
        metrics = self._measure(pl_module)
        self.report_pending()  # after the measurement, because this may wait for files
        self.metadata = self.metadata.extended(metrics)
        in_background = self._background and trainer.current_epoch + 1 != trainer.max_epochs
        if self._writer is not None:
            assert isinstance(pl_module, TrialModule)
            epoch = len(self.metadata.history)
            self._writer.save(trainer, pl_module, epoch, metrics, background=in_background)
        seconds = self._clock() - self._started
        gpu_use = self._gpu_use(metrics["epoch_seconds"], seconds)
        self._pending = metrics | {"epoch_seconds": seconds} | gpu_use
        if not in_background:
            self.finish_pending()
        if self._peers.broadcast(self.stopped_by is not None):
            trainer.should_stop = True

    def report_pending(self) -> None:
        """Report the pending epoch, if there is one, once its files are written.

        Raises:
            StoppedByReport: the report ended the trial; :attr:`stopped_by` has the report's exception.
        """
        self.finish_pending()
        if self.stopped_by is not None:
            raise StoppedByReport

    def finish_pending(self, *, report: bool = True) -> None:
        """Do what :meth:`report_pending` does, but store the report's exception in :attr:`stopped_by` only.

        Args:
            report: False only waits for the files. A resumed trial then reports the epoch from the
                checkpoint's metadata.
        """
        metrics, self._pending = self._pending, None
        if metrics is None:
            return
        try:
            # FitAttempt.run raises the exception, because Lightning replaces some exceptions.
            unwritten = self._writer.wait() if self._writer is not None else ()
            if report:
                for message in unwritten:
                    self._on_message(message)
                self._report(metrics)
        except BaseException as error:
            self.stopped_by = error

    def report_diverged(self, pl_module: pl.LightningModule) -> None:
        """Report an epoch that ended with :class:`Diverged`. Its files are not written.

        Its training metrics are nan, because any of them may be the objective, and a trial that has diverged
        must have no finite value in its last epoch.
        """
        measured = self._measure(pl_module)
        metrics = measured | {name: math.nan for name in measured if name.startswith("train_")}
        self.metadata = self.metadata.extended(metrics)
        self._report(metrics)

    def _measure(self, pl_module: pl.LightningModule) -> dict[str, float]:
        assert isinstance(pl_module, TrialModule)
        seconds = self._trained - self._training_started
        speed = self._peers.all_reduce_sum(self._images) / seconds if seconds > 0 else math.nan
        return {
            **{f"train_{name}": value for name, value in pl_module.train_metrics.compute().items()},
            **self._evaluation(pl_module),
            "learning_rate": self._learning_rate,
            "images_per_second": speed,
            "epoch_seconds": self._clock() - self._started,
            **self._memory(pl_module),
        }

    def _evaluation(self, module: TrialModule) -> dict[str, float]:
        """Return the metrics of the evaluation; empty before the test images are evaluated."""
        once = self._eval_split == "test"
        if once and not self._eval_images:
            return {}
        measured = module.val_metrics.compute()
        if once:
            measured["images_per_second"] = self._peers.all_reduce_sum(self._eval_images) / self._eval_seconds
        return {f"{self._eval_split}_{name}": value for name, value in measured.items()}

    def _gpu_use(self, evaluated: float, closed: float) -> dict[str, float]:
        """Return the GPU's utilisation in this epoch, and the seconds of possible idleness by cause.

        Args:
            evaluated: seconds from the epoch's start to the end of its validation.
            closed: seconds from the epoch's start to the moment at which the next epoch may begin.
        """
        if self._utilisation is None:
            return {}
        spent = {
            GPU_UTILISATION: self._utilisation(),
            VALIDATION_SECONDS: evaluated - (self._trained - self._started),
            CHECKPOINT_SECONDS: closed - evaluated,
        }
        if self._first_step_seconds is not None:
            spent[FIRST_STEP_SECONDS] = self._first_step_seconds
            self._first_step_seconds = None  # reported once
        return {name: value for name, value in spent.items() if math.isfinite(value)}

    def _memory(self, pl_module: pl.LightningModule) -> dict[str, float]:
        """Return the trial's peak memory, which includes the epochs before a resume."""
        peak = peak_memory_mb(pl_module.device)
        if peak is None:
            return {}
        before = [epoch[PEAK_MEMORY] for epoch in self.metadata.history if PEAK_MEMORY in epoch]
        return {PEAK_MEMORY: max([self._peers.all_reduce_max(peak), *before])}

    def _report(self, metrics: dict[str, float]) -> None:
        writer = self._writer
        self._on_epoch(
            EpochReport(
                epoch=len(self.metadata.history),
                metrics=metrics,
                checkpoint=writer.checkpoint if writer else None,
                best_checkpoint=writer.best_checkpoint if writer else None,
            )
        )


_log = logging.getLogger(__name__)

#: Seconds between two readings. NVML's own sample period is a second or less.
PERIOD: Final = 1.0

#: Returns the present utilisation of the GPU: the share of the last second in which it ran a kernel, 0..1.
Reading = Callable[[], float]


def nvml_reading(device: torch.device) -> Reading | None:
    """Return a function that reads a CUDA device's utilisation from NVML; None if NVML cannot be read.

    It needs the package nvidia-ml-py. A part of a GPU (MIG) has no utilisation.
    """

    def read() -> float:
        return torch.cuda.utilization(device) / 100

    try:
        read()
    except Exception as error:
        # ModuleNotFoundError without the package, RuntimeError without the driver, and else NVML's own error,
        # whose class exists only with the package.
        _log.info("the GPU's utilisation is not recorded: %s", error)
        return None
    return read


@contextlib.contextmanager
def sampled_utilisation(device: torch.device, read: Reading | None) -> Iterator[Callable[[], float] | None]:
    """Read the utilisation of ``device`` every :data:`PERIOD` seconds within the block, on a thread.

    Yield a function that returns the mean of the readings since its last call, or nan without a reading. For
    a CPU without ``read``, yield None and start no thread. If a reading fails, the thread ends and the block
    continues. If ``read`` is None, NVML is read.
    """
    if read is None and device.type != "cuda":
        yield None
        return
    read = read or nvml_reading(device)
    if read is None:
        yield lambda: math.nan
        return
    readings: list[float] = []
    lock, ended = threading.Lock(), threading.Event()

    def sample() -> None:
        try:
            while not ended.wait(PERIOD):
                reading = read()
                with lock:
                    readings.append(reading)
        except Exception as error:
            # As in nvml_reading: NVML's errors have no common class without the package.
            _log.warning("the GPU's utilisation is no longer recorded: %s", error)

    def mean() -> float:
        with lock:
            value = math.fsum(readings) / len(readings) if readings else math.nan
            readings.clear()
        return value

    thread = threading.Thread(target=sample, name="gpu utilisation", daemon=True)
    thread.start()
    try:
        yield mean
    finally:
        ended.set()
        thread.join()
