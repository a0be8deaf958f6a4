"""The key of the memory that a trial needs."""

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


#: Fields that do not change a trial's memory. Any other field of TrialConfig must change the key.
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
    """The key depends on a field's value unless the field is listed."""
    changed_trial = SimpleNamespace(**{field: getattr(TRIAL, field) for field in field_names()})
    setattr(
        changed_trial, name, 12 if name == "batch_size" else 0.5 if name == "ema_decay" else "another value"
    )
    has_other_key = memory_signature(cast(TrialConfig, changed_trial)) != memory_signature(TRIAL)
    assert has_other_key is (name not in NO_MEMORY)
