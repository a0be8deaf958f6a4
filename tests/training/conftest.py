"""A small real trial: a slice of digits at 16 pixels, the paper's CIFAR-56 at a quarter of its width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.training import EpochReport, Objective, TrialProcess, train_trial

#: Nothing is drawn at random but the weights and the order of the images.
PLAIN = TrialConfig(
    layout="cifar",
    depth=56,
    width=0.25,
    image_size=16,
    batch_size=16,
    learning_rate=0.05,
    crop_padding=0,
    flip=False,
    precise_bn_batches=2,
)

#: Everything that holds state between steps or epochs is on.
SMALL = dataclasses.replace(
    PLAIN,
    warmup_epochs=1,
    crop_padding=1,
    mixup=0.2,
    drop_path=0.2,
    ema_decay=0.9,
    gradient_clip=5.0,
    label_smoothing=0.1,
    # Whatever the machine: a test of little memory says what it wants.
    checkpoint_activations="off",
)

PROCESS = tuple(field.name for field in dataclasses.fields(TrialProcess))

Run = Callable[..., list[EpochReport]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("digits")
    return open_dataset(DatasetConfig(name="digits", limit=80), data_root=root, cache_root=root)


@pytest.fixture(scope="session")
def small() -> TrialConfig:
    return SMALL


@pytest.fixture(scope="session")
def train(digits: ImageDataset) -> Run:
    """``train_trial`` on one CPU thread; returns the reports. Keywords override the small trial's."""

    def run(
        config: TrialConfig = SMALL,
        folder: Path | None = None,
        *,
        dataset: ImageDataset = digits,
        **options: Any,
    ) -> list[EpochReport]:
        reports: list[EpochReport] = []
        arguments: dict[str, Any] = {"epochs": 2, "seed": 0, "on_epoch": reports.append} | options
        goal = {name: arguments.pop(name) for name in ("metric", "mode", "keep", "log") if name in arguments}
        process: dict[str, Any] = {"device": "cpu", "threads": 1}
        process |= {name: arguments.pop(name) for name in PROCESS if name in arguments}
        train_trial(
            config,
            dataset,
            checkpoint_dir=folder,
            objective=Objective(**goal),
            process=TrialProcess(**process),
            **arguments,
        )
        return reports

    return run
