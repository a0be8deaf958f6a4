"""The report's file: whole, alone, and with everything in it said as it was given."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tune_rescon.config import TrialState
from tune_rescon.reporting import write_report
from tune_rescon.reporting.html import COLOUR, _costs, _curves
from tune_rescon.tuning import StudyResult, TrialCost, TrialSummary

MakeTrial = Callable[..., TrialSummary]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]


class Cells(HTMLParser):
    """The texts of a page's table, row by row, and the tags it left open."""

    VOID = ("meta", "link", "br", "hr", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def report(result: StudyResult, tmp_path: Path) -> str:
    write_report(result, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_search_without_a_trial_has_a_report_without_plots(make_result: MakeResult, tmp_path: Path) -> None:
    text = report(make_result(), tmp_path)
    assert "No trial has a finite val_accuracy yet." in text
    assert "plotly" not in text
    assert Cells(text).open == []


def test_every_trial_is_in_the_table(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    page = Cells(report(make_result(*(make_trial(n) for n in range(30))), tmp_path))
    assert page.open == []
    assert [cells[0] for cells in page.rows] == ["trial", *map(str, range(30))]


def test_the_library_is_in_the_file_once_and_nothing_is_fetched(
    make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path
) -> None:
    text = report(make_result(make_trial(0)), tmp_path)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", text)
    assert text.count("plotly.js v") == 1
    assert text.count("Plotly.newPlot(") >= 2


def test_the_summary_names_the_winner(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    text = report(make_result(make_trial(0), make_trial(1, values=(0.1, 0.75))), tmp_path)
    assert "2 trials, 4 h 0 min of CPU time." in text
    assert "Best: trial 1, val_accuracy 0.75 after epoch 2 (depth=56 learning_rate=0.1)." in text
    assert re.search(r'<tr class="best"><td>1</td>', text)


def test_names_and_values_are_escaped(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    wicked = "</script><script>alert(1)</script>"
    trial = make_trial(0, parameters={wicked: wicked})
    text = report(make_result(trial, name=wicked, metric=wicked), tmp_path)
    assert wicked not in text
    assert html.escape(wicked) in text


def test_each_state_has_one_place_in_the_legend_and_a_line_to_show(
    make_result: MakeResult, one_of_each: list[TrialSummary]
) -> None:
    lines = _curves(make_result(*one_of_each)).data
    named = [line.name for line in lines if line.showlegend]
    assert sorted(named) == sorted({t.state.value for t in one_of_each if t.epochs})
    assert all(len(line.x) == len(line.y) > 0 for line in lines)
    assert {line.name: line.line.color for line in lines} == {
        name: COLOUR[TrialState(name)] for name in named
    }


def test_epochs_are_counted_from_one(make_result: MakeResult, make_trial: MakeTrial) -> None:
    (line,) = _curves(make_result(make_trial(0, values=(0.1, 0.2, 0.3)))).data
    assert (list(line.x), list(line.y)) == ([1, 2, 3], [0.1, 0.2, 0.3])


def test_a_trial_without_a_finite_last_value_has_no_point(
    make_result: MakeResult, one_of_each: list[TrialSummary]
) -> None:
    (points,) = _costs(make_result(*one_of_each)).data
    valued = [trial for trial in one_of_each if math.isfinite(trial.value)]
    assert list(points.y) == [trial.value for trial in valued]
    assert len(valued) < len(one_of_each)


@pytest.mark.parametrize(
    ("against", "axis", "points"),
    [
        ("gmacs", "GMACs an image", [(1.0, 0.8), (4.0, 0.9)]),
        ("compute_hours", "CPU-hours", [(2.0, 0.9)]),
    ],
)
def test_the_front_is_drawn_through_its_points(
    against: str,
    axis: str,
    points: list[tuple[float, float]],
    make_result: MakeResult,
    make_trial: MakeTrial,
    make_costs: MakeCosts,
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    chart = _costs(make_result(*trials, costs=make_costs(4.0, 5.0, 1.0), against=against))
    _, front = chart.data
    assert list(zip(front.x, front.y, strict=True)) == points
    assert chart.layout.xaxis.title.text == axis


def test_the_summary_names_the_front_and_the_failure(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts, tmp_path: Path
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.8))]
    result = make_result(*trials, costs=make_costs(4.0, 1.0), against="gmacs", failure="Too many <failures>.")
    text = report(result, tmp_path)
    assert "Pareto front of val_accuracy against gmacs, the cheapest first: trials 1, 0." in text
    assert "Too many &lt;failures&gt;." in text
