"""One trial, from its configuration to its last epoch, in a notebook, a thread or a Ray worker process."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.errors import ConfigError, format_error
from tune_rescon.models import ExternalSpec, NetworkDescription, describe_network
from tune_rescon.training import messages
from tune_rescon.training.checkpoint import CheckpointFolder
from tune_rescon.training.cuda_graphs import HangWatchdog
from tune_rescon.training.device import DeviceConfig, isolate_rng, resolve_device
from tune_rescon.training.distributed import ProcessGroup
from tune_rescon.training.fit import FitAttempt, TrialProcess
from tune_rescon.training.memory import OomHistory, activation_checkpointing, release_memory
from tune_rescon.training.messages import EpochReport, OnMessage
from tune_rescon.training.trial_files import CheckpointMetadata, Objective, ResumePoint, find_resume_point

__all__ = ["check_shards", "find_shared_resume_point", "train_trial"]


OnEpoch = Callable[[EpochReport], None]

VALIDATION_ACCURACY: Final = Objective()
THIS_PROCESS: Final = TrialProcess()

#: Images of a training batch that each process must have: one image has no variance for batch norm.
_MIN_IMAGES: Final = 2


def check_shards(peers: ProcessGroup, config: TrialConfig, dataset: ImageDataset) -> None:
    """Check that every process gets enough images of each training batch, and an image to evaluate.

    Raises:
        ConfigError: a batch is too small, or the evaluated images are too few, for the number of processes.
    """
    if peers.alone:
        return
    batch, count = min(config.batch_size, len(dataset.train)), peers.shard.world_size
    if batch < _MIN_IMAGES * count:
        rule = f"a batch must have {_MIN_IMAGES} images for each of {count} workers"
        raise ConfigError(format_error(rule, got=str(batch)))
    evaluated = dataset.val if len(dataset.val) else dataset.test
    if len(evaluated) < count:
        rule = f"there must be an image to evaluate for each of {count} workers"
        raise ConfigError(format_error(rule, got=str(len(evaluated))))


def find_shared_resume_point(
    metadata: CheckpointMetadata, folder: CheckpointFolder | None, on_message: OnMessage, peers: ProcessGroup
) -> ResumePoint:
    """Run :func:`.find_resume_point` in the first process, and send its checkpoint to the others.

    The folders of the other processes need not be on the first one's machine. A ``last.ckpt`` in such a
    folder is replaced, or deleted if the first process found no checkpoint.

    Args:
        metadata: the trial, before its first epoch.
        folder: this process's checkpoint folder; None keeps no checkpoints.
        on_message: called with each message to the user.
        peers: the processes that train the trial together.

    Returns:
        The point from which this process starts or resumes.

    Raises:
        StorageError: as :func:`.find_resume_point`.
    """
    if peers.alone or folder is None:
        return find_resume_point(metadata, folder, on_message)
    if peers.first:
        start = find_resume_point(metadata, folder, on_message)
        peers.broadcast_file(folder.last)
        return start
    folder.create()
    peers.broadcast_file(folder.last)
    return find_resume_point(metadata, folder, on_message)


def train_trial(
    config: TrialConfig,
    dataset: ImageDataset,
    *,
    epochs: int,
    seed: int,
    checkpoint_dir: Path | None,
    on_epoch: OnEpoch,
    objective: Objective = VALIDATION_ACCURACY,
    process: TrialProcess = THIS_PROCESS,
) -> None:
    """Train ``config`` for ``epochs`` epochs; resume if ``checkpoint_dir`` holds a checkpoint.

    Each epoch is trained, validated, written to ``last.ckpt``, and only then passed to ``on_epoch``. A trial
    that was interrupted and resumed reports the same values as an uninterrupted one: on a CPU to the last
    bit, apart from times. A trial that has no epochs left returns without a report; ``epochs_in_checkpoint``
    returns the epochs reported before. If the training loss is not finite, the trial ends after one report
    with nan.

    The trial survives the following faults and reports each to ``process.on_message``:

    - The device's memory is too small for a step. The trial resumes from its last checkpoint without CUDA
      graphs, which have their own memory; then with activation checkpointing
      (:mod:`tune_rescon.training.memory`); then with micro-batches of half the images
      (:mod:`tune_rescon.training.microbatches`), and half of that, down to 8 images. Without a checkpoint it
      trains the epochs again, but reports none twice. With a file ``process.oom_records``, the next trial of
      the same network on the same device starts with the settings that fitted.
    - A step cannot be captured as a CUDA graph, in one process or in all. All of them resume without graphs.
    - A file cannot be written. The previous file stays, and the next epoch tries again.
    - A checkpoint is damaged. Training resumes from the previous one. Without that, it starts again.

    Args:
        config: all hyperparameters.
        dataset: images, decoded and split.
        epochs: length of the whole training; the schedule spans it.
        seed: seed of weights, order, augmentation and dropped paths.
        checkpoint_dir: a folder used by this trial only, created if absent; None writes no files.
        on_epoch: called in this thread; an exception from it ends the training and is raised unchanged.
        objective: the metric, and which network ``best.ckpt`` holds.
        process: the device, the peers and the callbacks of this process.

    Raises:
        Preempted: ``process.is_preempted`` returned True.
        ConfigError: a batch is too small for all ``process.peers``.
        NetworkError: the network does not exist.
        ResourceError: the device does not exist.
        StorageError: ``checkpoint_dir`` cannot be created, or holds another trial's checkpoint.
        torch.OutOfMemoryError: the memory is too small for the smallest micro-batch too.
    """
    peers, on_message = process.peers, process.on_message
    report = _without_repeats(on_epoch)
    with peers.propagate_errors():
        spec = describe_network(config, classes=dataset.classes, in_channels=dataset.channels)
        dataset = _with_pretrained_preprocessing(dataset, config, spec)
        metadata = CheckpointMetadata(
            config=config, spec=spec, dataset=dataset.digest, seed=seed, epochs=epochs
        )
        placement = _placement(process, config)
        folder = None if checkpoint_dir is None else CheckpointFolder(path=checkpoint_dir)
        check_shards(peers, config, dataset)
        start = find_shared_resume_point(metadata, folder, on_message, peers)
        release_memory()  # of this process's earlier trials; it would count as this trial's
        images = peers.largest_shard(min(config.batch_size, len(dataset.train)))
        history = OomHistory.of(config, spec, placement, process.oom_records)
        watchdog = HangWatchdog(folder=process.hang_folder, key=history.key) if process.hang_folder else None
        capture_steps = _may_capture_steps(config, history, images=images, watchdog=watchdog, process=process)
        if start.checkpoint is None:
            # A resumed trial keeps its micro-batches: another number would change batch norm's statistics.
            start = _with_known_limits(start, history, images, process)
    attempt = FitAttempt(
        start=start,
        dataset=dataset,
        placement=placement,
        folder=folder,
        objective=objective,
        process=process,
        batch_images=images,
        capture_steps=capture_steps,
        watchdog=watchdog,
    )
    while len(start.metadata.history) < epochs:
        with placement.active(process.threads), isolate_rng(placement.device):
            retry = attempt.run(report)
        if retry is None:
            return
        release_memory()  # the attempt's network and optimiser
        if retry.out_of_memory:
            is_captured = attempt.graph_capture is not None
            tried = history.variant(captured=is_captured, recomputes=start.metadata.recomputes)
            tried.record_oom(images, start.metadata.micro_batches)
        with peers.propagate_errors():
            on_message(retry.message)
            start = find_shared_resume_point(metadata, folder, on_message, peers)
        start = _with_settings(start, micro_batches=retry.micro_batches, recomputes=retry.recomputes)
        attempt = dataclasses.replace(attempt, start=start, capture_steps=False)


def _placement(process: TrialProcess, config: TrialConfig) -> DeviceConfig:
    placement = resolve_device(process.device, precision=config.precision)
    if config.precision == "fp16" and not placement.scales_gradients:
        process.on_message("precision fp16 is for GPUs; this trial trains in fp32 on its CPU")
    return placement


def _with_pretrained_preprocessing(
    dataset: ImageDataset, config: TrialConfig, spec: NetworkDescription
) -> ImageDataset:
    """Return ``dataset`` with the preprocessing of the trial's pretrained weights, if it has such weights."""
    if not (config.pretrained and isinstance(spec, ExternalSpec)):
        return dataset
    # Imported here because it imports timm's networks with it.
    from tune_rescon.models.external import pretrained_images

    images = pretrained_images(spec)
    return dataclasses.replace(dataset, mean=images.mean, std=images.std, interpolation=images.interpolation)


def _may_capture_steps(
    config: TrialConfig,
    history: OomHistory,
    *,
    images: int,
    watchdog: HangWatchdog | None,
    process: TrialProcess,
) -> bool:
    """Return False if a CUDA graph of this network has hung or run out of memory on a node of the trial."""
    evidence = watchdog.earlier_hang() if watchdog and config.cuda_graphs == "auto" else None
    if evidence is not None:
        process.on_message(
            f"no CUDA graph: one of this network has hung here before ({evidence}; remove it to try again)"
        )
    too_large = history.variant(captured=True).micro_batches(images) > 1
    return not process.peers.all_reduce_max(evidence is not None or too_large)


def _with_known_limits(
    start: ResumePoint, history: OomHistory, images: int, process: TrialProcess
) -> ResumePoint:
    """Return ``start`` with the settings that earlier trials on this node needed to fit the memory."""
    peers, on_message = process.peers, process.on_message
    config, spec = start.metadata.config, start.metadata.spec
    requested = activation_checkpointing(config, spec)
    if requested == "off" and config.checkpoint_activations == "on":
        networks = "Residual Attention Networks"
        on_message(f"keeps all activations, because checkpoint_activations works with {networks} only")
    recomputes = requested == "on"
    micro_batches = int(peers.all_reduce_max(history.variant(recomputes=recomputes).micro_batches(images)))
    if micro_batches > 1 and requested == "auto":
        recomputes = True
        micro_batches = int(peers.all_reduce_max(history.variant(recomputes=True).micro_batches(images)))
        if micro_batches == 1:
            on_message(messages.known_too_large(images, then="activation checkpointing is on"))
    if micro_batches > 1:
        then = f"{micro_batches} micro-batches of {messages.sizes(images, micro_batches)}"
        on_message(messages.known_too_large(images, then=then))
    return _with_settings(start, micro_batches=micro_batches, recomputes=recomputes)


def _with_settings(start: ResumePoint, *, micro_batches: int, recomputes: bool) -> ResumePoint:
    changed = dataclasses.replace(start.metadata, micro_batches=micro_batches, recomputes=recomputes)
    return dataclasses.replace(start, metadata=changed)


def _without_repeats(on_epoch: OnEpoch) -> OnEpoch:
    """Return a callback that passes each epoch to ``on_epoch`` once, and every report with a nan loss."""
    reported = 0

    def report(epoch: EpochReport) -> None:
        nonlocal reported
        if epoch.epoch > reported or math.isnan(epoch.metrics["train_loss"]):
            reported = max(reported, epoch.epoch)
            on_epoch(epoch)

    return report
