"""A small real trial: a slice of digits at 16 pixels, and a network of one convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.models.presets import LAYOUTS, PRESETS, Preset, Variant
from tune_rescon.training import EpochReport, Objective, TrialProcess, train_trial
from tune_rescon.training.compile import compiler_problem

#: Only the weights, dropout and the order of the images are random.
PLAIN_CONFIG = TrialConfig(
    network="tests.own_networks:small",
    image_size=16,
    batch_size=16,
    learning_rate=0.05,
    crop_padding=0,
    flip=False,
    precise_bn_batches=2,
)

#: Every feature that holds state between steps or epochs is on.
SMALL_CONFIG = dataclasses.replace(
    PLAIN_CONFIG,
    warmup_epochs=1,
    crop_padding=1,
    mixup=0.2,
    ema_decay=0.9,
    gradient_clip=5.0,
    label_smoothing=0.1,
    # Independent of the machine's memory.
    checkpoint_activations="off",
)

#: The paper's CIFAR layout with one attention module, a third of the layers of the shallowest one.
ONE_MODULE = dataclasses.replace(
    LAYOUTS["cifar"], channels=(64,), strides=(2,), openings=1, variants=(Variant(modules=(1,)),)
)

#: The same trial of a Residual Attention Network, with stochastic depth. `small_attention` adds its preset.
ATTENTION_CONFIG = dataclasses.replace(
    SMALL_CONFIG, network=None, preset="one_module", width=0.25, drop_path=0.2
)

PROCESS_FIELDS = tuple(field.name for field in dataclasses.fields(TrialProcess))

Train = Callable[..., list[EpochReport]]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root = tmp_path_factory.mktemp("digits")
    return open_dataset(DatasetConfig(name="digits", limit=80), data_root=root, cache_root=root)


@pytest.fixture(scope="session")
def small() -> TrialConfig:
    return SMALL_CONFIG


@pytest.fixture
def small_attention(monkeypatch: pytest.MonkeyPatch) -> TrialConfig:
    """The small trial of an attention network, whose preset exists during the test."""
    monkeypatch.setitem(LAYOUTS, "one_module", ONE_MODULE)
    (depth,) = ONE_MODULE.by_depth()
    monkeypatch.setitem(PRESETS, "one_module", Preset(layout="one_module", depth=depth))
    return ATTENTION_CONFIG


@pytest.fixture(scope="session")
def train(digits: ImageDataset) -> Train:
    """``train_trial`` on one CPU thread; returns the reports. Keywords override the small trial's."""

    def run(
        config: TrialConfig = SMALL_CONFIG,
        folder: Path | None = None,
        *,
        dataset: ImageDataset = digits,
        **options: Any,
    ) -> list[EpochReport]:
        reports: list[EpochReport] = []
        trial_options: dict[str, Any] = {"epochs": 2, "seed": 0, "on_epoch": reports.append} | options
        objective = {
            name: trial_options.pop(name) for name in ("metric", "mode", "at", "log") if name in trial_options
        }
        process: dict[str, Any] = {"device": "cpu", "threads": 1}
        process |= {name: trial_options.pop(name) for name in PROCESS_FIELDS if name in trial_options}
        train_trial(
            config,
            dataset,
            checkpoint_dir=folder,
            objective=Objective(**objective),
            process=TrialProcess(**process),
            **trial_options,
        )
        return reports

    return run


@pytest.fixture(scope="module")
def cpp_compiler() -> None:
    """Skip the test if torch.compile finds no C++ compiler here: the package needs one only for `compile`."""
    problem = compiler_problem(torch.device("cpu"))
    if problem is not None:
        pytest.skip(f"torch.compile needs a C++ compiler: {problem}")
