"""The LightningModule of a trial, which computes a training step, and the Trainer that calls it.

Shapes: B images of a batch, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning_fabric.plugins import TorchCheckpointIO
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from tune_rescon.config import TrialConfig
from tune_rescon.models import ResidualAttentionNetwork
from tune_rescon.signal_handlers import restore_handler
from tune_rescon.training.averaging import AveragedNetwork, batch_norm_statistics, reestimate_batch_norm
from tune_rescon.training.compile import compile_units, raised_recompile_limit, uncompiled
from tune_rescon.training.cuda_graphs import CapturedStep, FusedWeightCast, GraphCapture, Outputs
from tune_rescon.training.device import DeviceConfig
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.memory import ran_out_of_memory, recompute_activations
from tune_rescon.training.metrics import EpochMetrics
from tune_rescon.training.microbatches import MicroBatch, split_batch
from tune_rescon.training.optim import make_optimizer, make_schedule

__all__ = ["StepExecution", "TrialModule", "fit", "make_trainer"]


Contexts = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class StepExecution:
    """How steps are computed: the device, the ways to save time or memory, and the weights of the classes."""

    placement: DeviceConfig
    """The device and the precision."""
    micro_batches: int = 1
    """Micro-batches of every batch, also in the validation and when batch-norm statistics are estimated. The
    validation uses more of them if these do not fit."""
    compiling: bool = False
    """True if training runs the network's units compiled."""
    recomputes: bool = False
    """True for activation checkpointing: activations are recomputed, so that a step keeps less memory."""
    graph_capture: GraphCapture | None = None
    """Captures the first step, which is then replayed for all batches of the same shape; None: steps run
    eagerly. It must be None with micro-batches, because their gradients are added up."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the training loss; None: all classes weigh the same."""


class TrialModule(pl.LightningModule):
    """A network with its loss, optimiser and schedule, and the metrics of the current epoch.

    ``training_step``, ``backward`` and ``optimizer_and_scheduler`` need no Trainer, so the benchmarks time
    this same code.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrialConfig,
        execution: StepExecution,
        *,
        classes: int,
        epochs: int,
        steps_per_epoch: int,
        eval_metrics: EpochMetrics | None = None,
        peers: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """Move ``network`` to the device and prepare its training.

        Args:
            network: the network to train.
            config: the trial's hyperparameters.
            execution: how its steps are computed.
            classes: number of classes.
            epochs: length of the training; the schedule spans ``epochs`` x ``steps_per_epoch`` steps.
            steps_per_epoch: training steps of an epoch.
            eval_metrics: the metrics of a validation; None: loss, accuracy and top-5 accuracy.
            peers: the processes that train this network together, each on its own shard of the batches.
        """
        super().__init__()
        self._placement = execution.placement
        self.network = self._placement.move_network(network)
        self.averaged = AveragedNetwork(self.network, config.ema_decay) if config.ema_decay else None
        self._frozen = {name for name, module in self.network.named_modules() if not module.training}
        self.train_metrics = EpochMetrics(classes, peers=peers)
        self.val_metrics = eval_metrics or EpochMetrics(classes, top5=True, peers=peers)
        self._peers = peers
        self._config = config
        self._micro_batches = self._eval_micro_batches = execution.micro_batches
        weights = execution.class_weights
        self._class_weights_K = (
            None if weights is None else torch.tensor(weights, device=self._placement.device)
        )
        capture = execution.graph_capture
        self._captured_step = CapturedStep(self._forward_backward, self.network, capture) if capture else None
        # Compiled code includes the casts. A network from elsewhere may use its weights outside of autocast.
        casts = capture and not execution.compiling and isinstance(network, ResidualAttentionNetwork)
        half = self._placement.autocast_dtype if casts else None
        self._cast = FusedWeightCast(self.network, half) if half is not None else None
        self.scaler = GradScaler(self._placement.device.type, enabled=self._placement.scales_gradients)
        """Scales the loss, and the gradients back before the step; does nothing unless the precision is fp16.

        Its scale is a tensor on the device, which a captured step reads each time it is replayed.
        """
        self._compilation: Contexts = contextlib.nullcontext
        self._without_compilation: Contexts = contextlib.nullcontext
        if execution.compiling:
            compile_units(self.network)
            self._compilation = functools.partial(raised_recompile_limit, self.network)
            self._without_compilation = uncompiled
        if execution.recomputes:
            recompute_activations(self.network)
        self._gradients: list[Tensor] = []
        self._with_gradients: list[nn.Parameter] = []
        self._remaining: list[MicroBatch] = []
        self._images = 0
        self._multiplier = make_schedule(
            config, total_steps=epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch
        )

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated and saved: the averaged one if there is one, else ``network``."""
        return self.network if self.averaged is None else self.averaged.network

    def logits(self, network: Callable[[Tensor], Tensor], images_BCHW: Tensor) -> Tensor:
        """Return the class scores (B, K) of ``network``, in fp32, computed in the placement's precision.

        If an activation is too large for fp16, a validation (without gradients) computes them again in fp32.
        In training the loss is then not finite, and the trial ends as diverged.
        """
        images_BCHW = self._placement.move_images(images_BCHW)
        if not torch.is_grad_enabled():
            return self._placement.within_range(lambda: network(images_BCHW))
        with self._placement.autocast():
            return network(images_BCHW).float()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the training loss: cross entropy with the configured label smoothing and class weights.

        With several micro-batches this is the loss of the first one, weighted by its share of the images.
        :meth:`backward` runs the others one by one: each starts after the previous one's gradient is computed
        and its activations are freed.

        Args:
            batch: images (B, C, H, W) and targets. Targets are labels (B) or, under mixup and cutmix, soft
                targets (B, K); accuracy then counts hits on the class with the largest share.
        """
        first, *self._remaining = split_batch(*batch, self._micro_batches)
        self._images = len(batch[0])
        return self._weighted_loss(first)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add up the step's gradients over its micro-batches and over all peers.

        They are scaled by :attr:`scaler`. A gradient that is not finite in one process is not finite in the
        sum, so all processes skip the same steps.
        """
        if self._gradients:
            # Set here, because the optimiser clears the gradients between training_step and this call.
            for parameter, gradient in zip(self._with_gradients, self._gradients, strict=True):
                parameter.grad = gradient
            self._gradients = []
        else:
            super().backward(self.scaler.scale(loss), *args, **kwargs)
        for micro_batch in self._remaining:
            super().backward(self.scaler.scale(self._weighted_loss(micro_batch)), *args, **kwargs)
        self._remaining = []
        self._peers.sum_gradients(self.network.parameters(), images=self._images)

    def _weighted_loss(self, micro_batch: MicroBatch) -> Tensor:
        images_BCHW, targets = micro_batch.images_BCHW, micro_batch.targets
        if self._captured_step:
            output, logits_BK, *self._gradients = self._captured_step(images_BCHW, targets)
            loss = output.clone()  # the next replay overwrites the original
        else:
            loss, logits_BK = self._loss_and_logits(self.network, images_BCHW, targets)
        labels_B = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self.train_metrics.update(loss, logits_BK, labels_B)
        return loss if micro_batch.share == 1 else loss * micro_batch.share

    def _loss_and_logits(
        self, network: Callable[[Tensor], Tensor], images_BCHW: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        with self._compilation():
            logits_BK = self.logits(network, images_BCHW)
        smoothing = self._config.label_smoothing
        if self._class_weights_K is None:
            return F.cross_entropy(logits_BK, targets, label_smoothing=smoothing), logits_BK
        summed = F.cross_entropy(
            logits_BK, targets, self._class_weights_K, label_smoothing=smoothing, reduction="sum"
        )
        # torch's own mean divides by the weights of this batch's labels. The mean over the images makes the
        # loss of soft targets, of micro-batches and of several processes the loss of the whole batch.
        return summed / len(targets), logits_BK

    def _forward_backward(self, images_BCHW: Tensor, targets: Tensor) -> Outputs:
        """Return the loss, the logits, and the gradients of the parameters that have one."""
        copies = self._cast.copies() if self._cast else {}
        network = functools.partial(torch.func.functional_call, self.network, copies)
        loss, logits_BK = self._loss_and_logits(network, images_BCHW, targets)
        self.network.zero_grad()
        # torch.autograd.grad would return a gradient in a layout that the fused optimiser would misread.
        torch.autograd.backward(self.scaler.scale(loss))
        if self._cast:
            self._cast.backward_to_fp32(copies)
        # A network from elsewhere may have parameters that are frozen, or that its logits do not use.
        self._with_gradients = [
            parameter for parameter in self.network.parameters() if parameter.grad is not None
        ]
        gradients = (parameter.grad for parameter in self._with_gradients)
        known = (gradient for gradient in gradients if gradient is not None)
        return (loss.detach(), logits_BK.detach(), *known)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Measure the evaluated network; the loss is plain cross entropy, so that trials can be compared.

        If a batch does not fit in the memory, this batch and all later ones are evaluated in smaller
        micro-batches. That changes only the time.
        """
        for part, logits_BK in self._evaluate(batch):
            self.val_metrics.update(F.cross_entropy(logits_BK, part.targets), logits_BK, part.targets)

    def _evaluate(self, batch: tuple[Tensor, Tensor]) -> list[tuple[MicroBatch, Tensor]]:
        """Return the batch's micro-batches, each with the class scores of its images."""
        parts = split_batch(*batch, self._eval_micro_batches)
        try:
            with self._without_compilation():
                return [(part, self.logits(self.eval_network, part.images_BCHW)) for part in parts]
        except RuntimeError as error:
            if len(parts) == len(batch[0]) or not ran_out_of_memory(error):
                raise
        # Outside the handler, because the exception holds the tensors that did not fit.
        self._eval_micro_batches = 2 * len(parts)
        return self._evaluate(batch)

    def reestimate_batch_norm(self, batches_BCHW: Sequence[Tensor]) -> None:
        """Re-estimate the evaluated network's batch-norm statistics on ``batches_BCHW``.

        Without batches the statistics stay unchanged. So do those of norms that were always in eval mode.
        Without an averaged network the estimate overwrites the running statistics. Training does not depend
        on them, because batch norm normalises by the batch in training mode.

        Each process estimates on its own batches. Afterwards all processes have the average of the estimates.

        Every micro-batch has the same weight, because the sizes of micro-batches differ by one image at most.
        In fp16 the estimate is repeated in fp32 if an activation was too large.
        """

        def estimate() -> Tensor:
            parts_BCHW = (
                self._placement.move_images(part_BCHW)
                for images_BCHW in batches_BCHW
                for part_BCHW in images_BCHW.tensor_split(self._micro_batches)
            )
            reestimate_batch_norm(self.eval_network, parts_BCHW, frozen=self._frozen)
            statistics = batch_norm_statistics(self.eval_network)
            return torch.stack([values.sum() for values in statistics]) if statistics else torch.zeros(1)

        with self._without_compilation():
            self._placement.within_range(estimate)
        self._peers.average(batch_norm_statistics(self.eval_network))

    def average_batch_norm(self) -> None:
        """Replace the batch-norm statistics of all networks by their average over all processes.

        Each process has the statistics of its own shard of the batches. A checkpoint has only those of the
        first process, from which all processes resume.
        """
        networks = [self.network] if self.averaged is None else [self.network, self.averaged.network]
        self._peers.average([values for network in networks for values in batch_norm_statistics(network)])

    def on_train_epoch_start(self) -> None:
        """Reset the metrics of the previous epoch."""
        self.train_metrics.reset()
        self.val_metrics.reset()

    def optimizer_and_scheduler(self) -> tuple[Optimizer, LambdaLR]:
        """Return the optimiser and the scheduler, which must step once after each step of the optimiser."""
        optimizer = make_optimizer(
            self.network, self._config, device=self._placement.device, scaled=self.scaler.is_enabled()
        )
        return optimizer, LambdaLR(optimizer, self._multiplier)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return :meth:`optimizer_and_scheduler` in Lightning's format."""
        optimizer, scheduler = self.optimizer_and_scheduler()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_trainer(
    *,
    epochs: int,
    placement: DeviceConfig,
    gradient_clip: float,
    callbacks: Sequence[Callback],
    validate_every: int = 1,
    scaler: GradScaler | None = None,
) -> pl.Trainer:
    """Return a Trainer for one device that only trains and validates, and calls ``callbacks`` in order.

    Args:
        epochs: length of the whole training.
        placement: the device; the module itself applies the precision.
        gradient_clip: largest norm of the gradient; 0: no clipping.
        callbacks: called in this order.
        validate_every: epochs between two validations.
        scaler: steps the optimiser, if it is enabled, and is saved in the checkpoints. The module scales its
            gradients with it.
    """
    plugins: list[Any] = [LightningEnvironment(), CollectedCheckpoint()]
    if scaler is not None and scaler.is_enabled():
        plugins.append(ScaledPrecision("16-mixed", placement.device.type, scaler))
    with _quiet():
        return pl.Trainer(
            accelerator="gpu" if placement.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=epochs,
            check_val_every_n_epoch=validate_every,
            gradient_clip_val=gradient_clip or None,
            callbacks=list(callbacks),
            # Without an explicit environment, Lightning detects SLURM around a Ray worker, replaces the
            # worker's signal handlers and waits for peers. Lightning's precision stays fp32: the module
            # applies its own (DeviceConfig.autocast), so the benchmarks' step has it too.
            plugins=plugins,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule, checkpoint: Path | None
) -> None:
    """Run ``trainer.fit`` from a ``checkpoint``, or from the start, and let Ctrl-C raise KeyboardInterrupt.

    Lightning turns KeyboardInterrupt into ``SystemExit(1)`` and leaves SIGINT ignored. A command must be able
    to handle Ctrl-C itself.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        with _quiet():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        restore_handler(signal.SIGINT, handler)
        raise error.__context__ from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages about devices, limits and services that Lightning repeats for every trial."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 checks torch's pytrees in a way that torch 2.13 and later deprecate.
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.`", FutureWarning)
            # The schedule also counts the first steps that the gradient scaler skips.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            # The data module itself resumes at the next batch.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class ScaledPrecision(MixedPrecision):
    """Lets a gradient scaler step the optimiser and saves its state, but neither casts nor scales.

    The module does both, so that a step that is captured as a CUDA graph contains them. Checkpoints hold the
    state under the name of this class.
    """

    @override
    def forward_context(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # wider
        """Return a context that does nothing: the module's own autocast follows its placement."""
        return contextlib.nullcontext()

    @override
    def pre_backward(self, tensor: Tensor, module: pl.LightningModule) -> Tensor:  # type: ignore[override]
        """Return the loss as it is: the module scales each micro-batch, also in a captured step."""
        return Precision.pre_backward(self, tensor, module)


class CollectedCheckpoint(TorchCheckpointIO):
    """Passes the state of a checkpoint to the caller instead of writing it.

    Lightning has no public way to collect that state.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Call ``storage_options``, a function, with ``checkpoint``; :class:`.CheckpointWriter` gives it."""
        storage_options(checkpoint)
