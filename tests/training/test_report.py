from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.metric_names import METRICS, PEAK_MEMORY, TEST_METRICS
from tune_rescon.training import EpochReport, Objective


@given(value=st.floats(), best=st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_only_a_finite_value_in_the_right_direction_is_better(value: float, best: float | None) -> None:
    up, down = (Objective(mode=mode).is_better(value, best) for mode in ("max", "min"))
    if not math.isfinite(value):
        assert not up
        assert not down
    elif best is None:
        assert up
        assert down
    else:
        assert (up, down) == (value > best, value < best)


@pytest.mark.parametrize("names", [set(METRICS), {*METRICS, PEAK_MEMORY}])
def test_a_report_may_include_peak_memory(names: set[str]) -> None:
    assert set(EpochReport(epoch=1, metrics=dict.fromkeys(names, 0.0)).metrics) == names


TRAINING = {name for name in METRICS if not name.startswith("val_")}


@pytest.mark.parametrize("names", [TRAINING, {*TRAINING, *TEST_METRICS, "test_accuracy/cat", PEAK_MEMORY}])
def test_a_report_of_a_final_training_has_no_validation_metrics(names: set[str]) -> None:
    assert set(EpochReport(epoch=1, metrics=dict.fromkeys(names, 0.0)).metrics) == names


@pytest.mark.parametrize(
    "names",
    [
        set(METRICS) - {"val_loss"},
        {*TRAINING, "val_f1"},
        {PEAK_MEMORY},
        {*METRICS, *TEST_METRICS},
        {*TRAINING, "test_accuracy"},
    ],
)
def test_a_report_with_missing_or_unknown_metrics_is_rejected(names: set[str]) -> None:
    with pytest.raises(AssertionError):
        EpochReport(epoch=1, metrics=dict.fromkeys(names, 0.0))
