"""Test accuracy against the wall clock: a training on real images whose schedule ends when the time does."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from step import alternate
from waiting import Case

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.training import EpochReport, TrialProcess, build_step, train_trial

#: Of the steps' own speed, what an epoch reaches with its validation: an estimate.
EPOCH_SHARE = 0.9


class OutOfTimeError(Exception):
    """The minutes are over."""


def show_training(case: Case, images: Path, device: str, seconds: float, folder: Path) -> None:
    """Train on all training images, and evaluate every epoch on the test images, which choose nothing."""
    asked = DatasetConfig(name="folder", path=str(images))
    dataset = with_test_as_validation(open_dataset(asked, data_root=folder, cache_root=folder))
    epochs = epochs_in(seconds, case, len(dataset.train), device)
    config = TrialConfig(
        preset=case.preset, batch_size=case.batch_size, weight_decay=5e-4, schedule="cosine", warmup_epochs=1
    )
    print(f"\n{case.preset}, batch {case.batch_size}, on {len(dataset.train)} images of {images.name}:")
    print(
        f"SGD 0.1, one cosine over {epochs} epochs, crop and flip;"
        f" evaluated on {len(dataset.val)} test images\n"
    )
    hang_folder = folder / "stalled"
    if device == "cuda":
        print(f"(a recording that never comes back ends this program; {hang_folder} then has its stack)\n")
    print("| seconds | epoch | test accuracy | images/s |\n|---|---|---|---|", flush=True)
    started = time.perf_counter()

    def report(epoch: EpochReport) -> None:
        spent = time.perf_counter() - started
        metrics = epoch.metrics
        accuracy, speed = metrics["val_accuracy"], metrics["images_per_second"]
        print(f"| {spent:.0f} | {epoch.epoch} | {accuracy:.4f} | {speed:.0f} |", flush=True)
        if spent > 1.3 * seconds and epoch.epoch < epochs:
            raise OutOfTimeError

    try:
        train_trial(
            config,
            dataset,
            epochs=epochs,
            seed=0,
            checkpoint_dir=None,
            on_epoch=report,
            process=TrialProcess(on_message=print, device=device, hang_folder=hang_folder),
        )
    except OutOfTimeError:
        print("\nslower than was estimated: ended before the schedule")


def with_test_as_validation(dataset: ImageDataset) -> ImageDataset:
    """Return a dataset that trains on all training images and validates on the test images."""
    train, val = dataset.train, dataset.val
    everything = replace(
        train,
        rows_N=np.concatenate((train.rows_N, val.rows_N)),
        labels_N=np.concatenate((train.labels_N, val.labels_N)),
    )
    return replace(dataset, train=everything, val=dataset.test, digest=f"{dataset.digest} validated on test")


def epochs_in(seconds: float, case: Case, images: int, device: str) -> int:
    """How many epochs the time is for, by the speed of some steps: the schedule must end with them."""
    step = build_step(case.preset, batch_size=case.batch_size, device=device)
    speeds = alternate({"": step}, batch_size=case.batch_size, device=device, rounds=2, seconds=1.0)
    return max(2, int(EPOCH_SHARE * speeds[""].median * seconds / images))
