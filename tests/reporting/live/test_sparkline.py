"""Curves of a few characters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.reporting.live.rendering import ASCII, BLOCKS, sparkline


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ((), ""),
        ((0.5,), "▅"),
        ((0.0, 1.0), "▁█"),
        ((1.0, math.nan, 0.0), "█ ▁"),
        ((math.nan, math.inf), "  "),
        ((-1.7e308, 1.7e308), "▁█"),
        (tuple(range(16)), "▁▂▃▄▅▆▇█"),
    ],
)
def test_a_curve(values: tuple[float, ...], drawn: str) -> None:
    assert sparkline(values, 8) == drawn


@given(st.lists(st.floats(allow_subnormal=False), max_size=200), st.integers(1, 40))
def test_any_values_have_room(values: list[float], width: int) -> None:
    drawn = sparkline(values, width, ramp=ASCII)
    assert len(drawn) == min(len(values), width)
    assert set(drawn) <= {*ASCII, " "}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.integers(1, 40))
def test_its_end_is_the_last_value(values: list[float], width: int) -> None:
    # A better value than all before it is at the top.
    values.append(2.0)
    assert sparkline(values, width)[-1] == (BLOCKS[4] if width == 1 else BLOCKS[-1])
