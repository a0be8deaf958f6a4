"""Trials of running searches, without a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.metric_names import METRICS
from tune_rescon.tuning import TrialRecord

MakeTrial = Callable[..., TrialRecord]

PARAMETERS: Mapping[str, Any] = {"depth": 56, "learning_rate": 0.1234, "weight_decay": 1.2e-4}


@pytest.fixture
def make_trial() -> MakeTrial:
    """A trial whose epochs took two seconds each."""

    def make(
        number: int,
        *values: float,
        state: TrialState = TrialState.RUNNING,
        maximize: bool = True,
        error: str | None = None,
    ) -> TrialRecord:
        return TrialRecord(
            number=number,
            state=state,
            parameters=PARAMETERS,
            metric="val_accuracy",
            maximize=maximize,
            values=values,
            history={"epoch_seconds": (2.0,) * len(values)},
            error=error,
        )

    return make


@pytest.fixture
def metrics() -> dict[str, float]:
    """The metrics of one epoch."""
    return {**dict.fromkeys(METRICS, 0.5), "epoch_seconds": 2.0, "images_per_second": 600.0}
