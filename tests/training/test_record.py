from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.metric_names import METRICS
from tune_rescon.models import resolve_network
from tune_rescon.training.trial_files import CheckpointMetadata

CONFIG = TrialConfig(image_size=16)
RECORD = CheckpointMetadata(
    config=CONFIG,
    spec=resolve_network(CONFIG, classes=10, in_channels=1),
    dataset="digest",
    seed=0,
    epochs=9,
)


def _metrics(**values: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, 0.5) | values


def test_checkpoint_metadata_round_trips_through_json() -> None:
    record = dataclasses.replace(RECORD, micro_batches=4)
    record = record.extended(_metrics(val_loss=1.0)).extended(_metrics(val_loss=0.25))
    assert CheckpointMetadata.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_checkpoint_metadata_without_micro_batches_has_one() -> None:
    values = RECORD.to_dict()
    assert values.pop("micro_batches") == 1
    assert CheckpointMetadata.from_dict(values) == RECORD


def test_a_trial_accepts_a_checkpoint_of_its_own() -> None:
    RECORD.check_own(RECORD.extended(_metrics()))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 10}, {"dataset": "other"}, {"config": TrialConfig(image_size=17)}],
    ids=lambda change: next(iter(change)),
)
def test_another_trials_checkpoint_is_refused_naming_the_difference(change: dict[str, Any]) -> None:
    other_trial = dataclasses.replace(RECORD, **change)
    with pytest.raises(StorageError, match=f"another {next(iter(change))}"):
        RECORD.check_own(other_trial)
