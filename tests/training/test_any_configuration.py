"""Any valid configuration trains: a property over all fields of a trial's recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_rescon.config import DatasetConfig, Rule, TrialConfig, field_names, field_rule
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.metric_names import METRICS
from tune_rescon.training import EpochReport, TrialProcess, train_trial

pytestmark = [pytest.mark.torch, pytest.mark.nightly]

#: Fields of the network are fixed, so that an example takes a tenth of a second, and so is `compile`, which
#: takes minutes. Other tests vary these fields.
FIXED: Final[Mapping[str, Any]] = {
    "dataset": None,
    "network": None,
    "pretrained": False,
    "preset": None,
    "layout": "cifar",
    "depth": 56,
    "width": 0.0625,
    "image_size": 16,
    "init_from": None,
    "batch_size": 8,
    "compile": "off",
}


def values(rule: Rule) -> st.SearchStrategy[Any]:
    """Valid values of a field, including its bounds."""
    if rule.choices:
        return st.sampled_from(rule.choices)
    if bool in rule.kinds:
        return st.booleans()
    if tuple in rule.kinds:
        return st.lists(st.integers(1, 99), max_size=3, unique=True).map(sorted).map(tuple)
    if int in rule.kinds:
        return st.integers(int(rule.low), int(min(rule.high, rule.low + 8)))
    upper = min(rule.high, rule.low + 2.0)
    return st.floats(
        rule.low, upper, exclude_min=rule.open_low, exclude_max=rule.open_high and upper == rule.high
    )


RECIPE: Final = {name: values(field_rule(name)) for name in field_names() if name not in FIXED}


def test_every_field_is_drawn_or_fixed() -> None:
    assert RECIPE.keys() | FIXED.keys() == {field.name for field in dataclasses.fields(TrialConfig)}
    assert {
        "optimizer",
        "class_weights",
        "crop_scale",
        "augment",
        "layer_decay",
        "freeze_epochs",
        "precision",
    } <= RECIPE.keys()


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    root: Path = tmp_path_factory.mktemp("digits")
    return open_dataset(DatasetConfig(name="digits", limit=40), data_root=root, cache_root=root)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(recipe=st.fixed_dictionaries(RECIPE))
def test_any_configuration_trains_and_reports_every_metric(
    few_images: ImageDataset, recipe: dict[str, Any]
) -> None:
    config = TrialConfig(**FIXED, **recipe)
    reports: list[EpochReport] = []
    report: Callable[[EpochReport], None] = reports.append
    process = TrialProcess(device="cpu", threads=1)
    train_trial(config, few_images, epochs=1, seed=0, checkpoint_dir=None, on_epoch=report, process=process)
    (only,) = reports
    assert set(only.metrics) == set(METRICS)
