"""One trial, from its configuration to its last epoch. Usable from a notebook, a thread or a Ray worker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tune_rescon.config import METRICS, TEST_METRICS, MetricAt, TrialConfig, metric_mode
from tune_rescon.data import ImageDataset
from tune_rescon.errors import ConfigError, format_error, unknown_name_message
from tune_rescon.models import resolve_network
from tune_rescon.training import messages
from tune_rescon.training.callbacks import never
from tune_rescon.training.checkpoint import CheckpointFolder
from tune_rescon.training.cuda_graphs import HangWatchdog
from tune_rescon.training.device import own_generator, place
from tune_rescon.training.distributed import SINGLE_PROCESS, ProcessGroup
from tune_rescon.training.fit import FitAttempt
from tune_rescon.training.memory import Shape, release_memory
from tune_rescon.training.messages import EpochReport, OnMessage
from tune_rescon.training.trial_files import CheckpointMetadata, ResumePoint, find_resume_point

__all__ = [
    "check_shares",
    "find_start_together",
    "train_trial",
]


#: Images of a training batch that each process must have: batch norm's variance of one is none.
_LEAST: Final = 2


def check_shares(peers: ProcessGroup, config: TrialConfig, dataset: ImageDataset) -> None:
    """Check that there is something of every batch for each process.

    Raises:
        ConfigError: there is not.
    """
    if peers.alone:
        return
    batch, count = min(config.batch_size, len(dataset.train)), peers.share.count
    if batch < _LEAST * count:
        rule = f"a batch must have {_LEAST} images for each of {count} workers"
        raise ConfigError(format_error(rule, got=str(batch)))
    judged = dataset.val if len(dataset.val) else dataset.test
    if len(judged) < count:
        rule = f"there must be an image to judge by for each of {count} workers"
        raise ConfigError(format_error(rule, got=str(len(judged))))


def find_start_together(
    record: CheckpointMetadata, folder: CheckpointFolder | None, on_note: OnMessage, peers: ProcessGroup
) -> ResumePoint:
    """:func:`.find_resume_point` by the first process; the others are sent the checkpoint it has found.

    Their folders need not be on its machine. A folder of theirs that has files loses them.

    Raises:
        StorageError: as :func:`.find_resume_point`.
    """
    if peers.alone or folder is None:
        return find_resume_point(record, folder, on_note)
    if not peers.first:
        folder.create()
        peers.share_file(folder.last)
        return find_resume_point(record, folder, on_note)
    start = find_resume_point(record, folder, on_note)
    peers.share_file(folder.last)
    return start


OnEpoch = Callable[[EpochReport], None]


def train_trial(
    config: TrialConfig,
    dataset: ImageDataset,
    *,
    epochs: int,
    seed: int,
    checkpoint_dir: Path | None,
    on_epoch: OnEpoch,
    on_note: OnMessage = messages.ignore,
    device: str = "auto",
    threads: int | None = None,
    metric: str = "val_accuracy",
    mode: str = "max",
    keep: MetricAt = "best",
    overruns: Path | None = None,
    stalls: Path | None = None,
    peers: ProcessGroup = SINGLE_PROCESS,
    leave: Callable[[], bool] = never,
) -> None:
    """Train ``config`` for ``epochs`` epochs, going on from ``checkpoint_dir`` if it holds a checkpoint.

    Each epoch is trained, validated, written to ``last.ckpt``, and only then given to ``on_epoch``. A trial
    that was interrupted and goes on reports, to the last bit on a CPU, what it would have reported without
    (times apart). One that has no epoch left returns without a report; ``recorded_epochs`` tells what was
    reported before. A training loss that is not finite ends the trial after one report with nan.

    What can be survived is, and is told to ``on_note``:

    - The device's memory is too small for a step: the trial goes on from its last checkpoint without CUDA
      graphs, whose memory is their own; then with activations computed twice
      (:mod:`tune_rescon.training.memory`); then with half the micro-batch and the gradients of two
      added up (:mod:`tune_rescon.training.memory`), and half of that, down to 8 images. Without a
      checkpoint it trains the epochs again, but reports none twice. With a file of ``overruns``, the next
      trial of that network on that device starts with what did fit.
    - A file cannot be written: the one before stays, and the next epoch tries again.
    - A checkpoint is damaged: training goes on from the one before, else from the start.

    Args:
        config: all hyperparameters.
        dataset: images, decoded and split.
        epochs: length of the whole training, over which the schedule is laid.
        seed: of weights, order, augmentation and dropped paths.
        checkpoint_dir: a folder of this trial's own, made if absent; None keeps nothing.
        on_epoch: called in this thread; an exception from it ends the training and comes out unchanged.
        on_note: called like ``on_epoch`` with one sentence for the user.
        device: "auto" (CUDA if there is one), "cpu", "cuda".
        threads: CPU threads torch may use meanwhile; None leaves them.
        metric: the metric whose ``mode`` ("max", "min") decides which network ``best.ckpt`` holds. Where it
            is one of the test images, those are what the network is judged by, once, after its last epoch.
        mode: see ``metric``.
        keep: whose network ``best.ckpt`` holds: the epoch's with the ``"best"`` metric, or the ``"last"``
            epoch's with a finite one.
        overruns: a file, made if absent, that the trials of this node share; None remembers nothing.
        stalls: a folder, made if absent, that the trials of this node share, for where a recording stood
            that did not come back within minutes. It ends this process (code 1), and later trials of
            that network on that device do without. None: a recording may take for ever.
        peers: this process among those that train the trial together
            (:mod:`tune_rescon.training.distributed`); all call
            this function, each with its own folder; the first one's counts.
        leave: asked after each training batch and each epoch's report; True has the trial written to
            ``last.ckpt`` as it is, amid the epoch, and ended: whoever calls this function again goes on with
            the next batch. A trial of several processes must not be asked to.

    Raises:
        Preempted: as ``leave`` said.
        ConfigError: ``metric`` is no objective, ``mode`` no mode, or a batch too small for all ``peers``.
        NetworkError: there is no such network.
        ResourceError: there is no such device.
        StorageError: ``checkpoint_dir`` cannot be made, or holds another trial's checkpoint.
        torch.OutOfMemoryError: the memory is too small for the smallest micro-batch too.
    """
    _check_objective(metric, mode)
    spec = resolve_network(config, classes=dataset.classes, in_channels=dataset.channels)
    record = CheckpointMetadata(config=config, spec=spec, dataset=dataset.digest, seed=seed, epochs=epochs)
    placement = place(device, precision=config.precision)
    folder = None if checkpoint_dir is None else CheckpointFolder(path=checkpoint_dir)
    check_shares(peers, config, dataset)
    start = find_start_together(record, folder, on_note, peers)
    report = _each_once(on_epoch)
    release_memory()  # of this process's trials before, which would count as this one's need
    images = peers.largest_share(min(config.batch_size, len(dataset.train)))
    shape = Shape.of(config, spec, placement, overruns)
    watch = None if stalls is None else HangWatchdog(folder=stalls, key=shape.key)
    stalled = watch.found() if watch and config.cuda_graphs == "auto" else None
    if stalled is not None:
        on_note(messages.stalled(stalled))
    record_steps = not peers.most(stalled is not None or shape.when(recorded=True).pieces(images) > 1)
    if start.checkpoint is None:
        # One that goes on keeps its micro-batches: batch norm would see the difference.
        start = _as_known(start, shape, images, peers, on_note)
    while len(start.record.history) < epochs:
        attempt = FitAttempt(
            start=start,
            dataset=dataset,
            placement=placement,
            folder=folder,
            metric=metric,
            mode=mode,
            keep=keep,
            peers=peers,
            leave=leave,
            record_steps=record_steps,
            watch=watch,
        )
        with placement.active(threads), own_generator(placement.device):
            retry = attempt.run(report, on_note)
        if retry is None:
            return
        release_memory()  # the attempt's network and optimiser
        if retry.overrun:
            recorded, recomputes = attempt.recorder is not None, start.record.recomputes
            tried = shape.when(recorded=recorded, recomputes=recomputes)
            tried.ran_out(images, start.record.micro_batches)
        on_note(retry.note)
        record_steps = False
        start = find_start_together(record, folder, on_note, peers)
        start = _with(start, micro_batches=retry.micro_batches, recomputes=retry.recomputes)


def _as_known(
    start: ResumePoint, shape: Shape, images: int, peers: ProcessGroup, on_note: OnMessage
) -> ResumePoint:
    """``start``, with as little at once as earlier trials on this node have found to be necessary."""
    asked = start.record.config.checkpoint_activations
    recomputes = asked == "on"
    pieces = int(peers.most(shape.when(recomputes=recomputes).pieces(images)))
    if pieces > 1 and asked == "auto":
        recomputes = True
        pieces = int(peers.most(shape.when(recomputes=True).pieces(images)))
        if pieces == 1:
            on_note(messages.known_to_recompute(images))
    if pieces > 1:
        on_note(messages.known_too_large(images, pieces=pieces))
    return _with(start, micro_batches=pieces, recomputes=recomputes)


def _with(start: ResumePoint, *, micro_batches: int, recomputes: bool) -> ResumePoint:
    changed = dataclasses.replace(start.record, micro_batches=micro_batches, recomputes=recomputes)
    return dataclasses.replace(start, record=changed)


def _each_once(on_epoch: OnEpoch) -> OnEpoch:
    """Pass an epoch on unless it was; one that ended the trial always."""
    reported = 0

    def report(epoch: EpochReport) -> None:
        nonlocal reported
        if epoch.epoch > reported or math.isnan(epoch.metrics["train_loss"]):
            reported = max(reported, epoch.epoch)
            on_epoch(epoch)

    return report


def _check_objective(metric: str, mode: str) -> None:
    objectives = [name for name in (*METRICS, *TEST_METRICS) if metric_mode(name)]
    if metric not in objectives:
        raise ConfigError(unknown_name_message("metric", metric, objectives))
    if mode not in ("max", "min"):
        raise ConfigError(format_error("a metric's mode must be max or min", got=repr(mode)))
