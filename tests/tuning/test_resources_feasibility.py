"""Which trials need the same memory."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tune_rescon.config import TrialConfig, field_names
from tune_rescon.tuning.resources import memory_signature

TRIAL = TrialConfig(batch_size=64)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 92},
        {"network": "timm/resnet18"},
        {"width": 0.5},
        {"image_size": 64},
        {"dataset": "cifar100"},
        {"optimizer": "adamw"},
        {"ema_decay": 0.99},
        {"batch_size": 12},
        {"precision": "bf16"},
    ],
)
def test_trials_that_need_different_memory_have_different_keys(change: dict[str, Any]) -> None:
    assert memory_signature(dataclasses.replace(TRIAL, **change)) != memory_signature(TRIAL)


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.2}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}, {"batch_size": 128}],
)
def test_trials_that_need_the_same_memory_have_the_same_key(change: dict[str, Any]) -> None:
    assert memory_signature(dataclasses.replace(TRIAL, **change)) == memory_signature(TRIAL)


#: Fields that do not change what memory a trial needs. A field that joins TrialConfig must be thought about.
NO_MEMORY = {
    *("learning_rate", "momentum", "nesterov", "weight_decay", "schedule", "warmup_epochs", "decay_fraction"),
    *("step_fractions", "label_smoothing", "gradient_clip", "drop_path", "precise_bn_batches", "normalize"),
    *("crop_padding", "flip", "augment", "mixup", "cutmix", "init_from", "pretrained"),
    *("class_weights", "class_sampling"),
    *("layer_decay", "classifier_lr_mult", "freeze_epochs", "cycles", "patience"),
    *("crop_scale", "crop_ratio", "rotation", "color_jitter", "random_erasing"),
}


@pytest.mark.parametrize("name", field_names())
def test_every_field_changes_the_memory_key_unless_listed(name: str) -> None:
    """Whatever its value: a trial that has another one is, or is not, told apart."""
    other = SimpleNamespace(**{field: getattr(TRIAL, field) for field in field_names()})
    setattr(other, name, 12 if name == "batch_size" else 0.5 if name == "ema_decay" else "another value")
    told_apart = memory_signature(cast(TrialConfig, other)) != memory_signature(TRIAL)
    assert told_apart is (name not in NO_MEMORY)
