from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from tune_rescon.config import METRICS, TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.models import resolve_network
from tune_rescon.training.record import TrialRecord

CONFIG = TrialConfig(image_size=16)
RECORD = TrialRecord(
    config=CONFIG,
    spec=resolve_network(CONFIG, classes=10, in_channels=1),
    dataset="digest",
    seed=0,
    epochs=9,
)


def _metrics(**values: float) -> dict[str, float]:
    return dict.fromkeys(METRICS, 0.5) | values


def test_a_record_survives_json() -> None:
    record = RECORD.extended(_metrics(val_loss=1.0)).extended(_metrics(val_loss=0.25))
    assert TrialRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("min", (), None),
        ("min", (3.0, 1.0, 2.0), 1.0),
        ("max", (3.0, 1.0, 2.0), 3.0),
        ("max", (math.nan, 1.0), 1.0),
        ("max", (math.nan,), None),
    ],
)
def test_the_best_so_far(mode: str, values: tuple[float, ...], expected: float | None) -> None:
    record = RECORD
    for value in values:
        record = record.extended(_metrics(val_loss=value))
    assert record.best("val_loss", mode) == expected


def test_a_trial_goes_on_with_its_own_history() -> None:
    found = RECORD.extended(_metrics())
    assert RECORD.continued(found) is found


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"epochs": 10}, {"dataset": "other"}, {"config": TrialConfig(image_size=17)}],
    ids=lambda change: next(iter(change)),
)
def test_another_trials_checkpoint_is_refused_by_what_differs(change: dict[str, Any]) -> None:
    found = dataclasses.replace(RECORD, **change)
    with pytest.raises(StorageError, match=f"another {next(iter(change))}"):
        RECORD.continued(found)
