"""The benchmarks' rows say whether a target is met."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import scheduling


def test_a_target_is_met_by_the_median_of_an_even_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Per round: ours, plain, and plain with its callback.
    # Ours takes as long as plain, then half as long again.
    seconds = itertools.chain([10.0, 10.0, 100.0], [15.0, 10.0, 100.0])
    monkeypatch.setattr(scheduling, "run_side", lambda *_: mock.Mock(seconds=next(seconds)))
    plain, _ = scheduling.noop_rows(trials=10, rounds=2)
    assert plain.measured.startswith("1.25 (1.00 to 1.50) x")
    assert plain.met
