"""Texts in CSV that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.csv_cells import csv_cell, csv_line


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "-", "- 1"]
)
def test_a_formula_is_escaped_as_text(text: str) -> None:
    assert csv_cell(text) == f"'{text}"
    assert next(csv.reader(io.StringIO(csv_line([text]), newline=""))) == [f"'{text}"]


@pytest.mark.parametrize(
    "value", ["", "cat", "a=b", "-0.5", "+1e3", "-0.5 -1e-05 nan", "-inf", "[-1]", None, True]
)
def test_other_cells_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) is value


@given(st.one_of(st.integers(), st.floats()))
def test_numbers_stay_numbers(number: float) -> None:
    (cell,) = next(csv.reader(io.StringIO(csv_line([number]))))
    assert type(number)(cell) == number or math.isnan(number)


@given(st.text())
def test_no_cell_is_a_formula_and_every_text_round_trips(text: str) -> None:
    cell = csv_cell(text)
    assert isinstance(cell, str)
    assert cell.removeprefix("'") == text.removeprefix("'")
    assert list(csv.reader(io.StringIO(csv_line(["a", text]), newline=""))) == [["a", cell]]
    try:
        float(cell.split(" ")[0])
    except ValueError:
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
