"""The report's page: complete, without other files, and with every text escaped."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tune_rescon.config import TrialState
from tune_rescon.reporting import write_report
from tune_rescon.reporting.charts import learning_curves, parallel_coordinates, slices
from tune_rescon.reporting.formatting import STATE_COLOUR, STATE_ORDER
from tune_rescon.reporting.incumbents import Group
from tune_rescon.reporting.page import panels
from tune_rescon.reporting.search_charts import costs, group_curves, survival_bars
from tune_rescon.tuning import SearchState, StudyResult, TrialCost, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]


class PageParser(HTMLParser):
    """Collects the cells of a page's tables, row by row, and the tags that are still open."""

    VOID_TAGS = ("meta", "link", "br", "hr", "img")
    INLINE_TAGS = ("button",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open_tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag not in self.VOID_TAGS:
            self.open_tags.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if next((tag for tag in reversed(self.open_tags) if tag not in self.INLINE_TAGS), "") in ("td", "th"):
            self.rows[-1].append(data)


def report(result: StudyResult, tmp_path: Path) -> str:
    write_report(result, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def figures(text: str) -> dict[str, Any]:
    figures_json = re.search(r'id="figures">(.*?)</script>', text)
    assert figures_json is not None
    read: dict[str, Any] = json.loads(figures_json[1])
    return read


def test_a_search_without_a_trial_has_a_report_without_plots(make_result: MakeResult, tmp_path: Path) -> None:
    text = report(make_result(), tmp_path)
    assert "No trial has a finite val_accuracy yet." in text
    assert "plotly" not in text
    assert PageParser(text).open_tags == []


def test_every_trial_is_in_the_table(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    page = PageParser(report(make_result(*(make_trial(n) for n in range(30))), tmp_path))
    assert page.open_tags == []
    assert [cells[0] for cells in page.rows] == ["trial", *map(str, range(30))]


def test_plotly_is_embedded_once_and_nothing_is_fetched(simulated: StudyResult, tmp_path: Path) -> None:
    text = report(simulated, tmp_path)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=(?!.data:)", text)
    assert text.count("plotly.js v") == 1


def test_each_plot_of_the_page_has_its_data(simulated: StudyResult, tmp_path: Path) -> None:
    text = report(simulated, tmp_path)
    places = re.findall(r'class="chart" id="([^"]+)"', text)
    assert places == list(dict.fromkeys(places))
    assert sorted(places) == sorted(figures(text))
    expected = {"curves", "coordinates", "importance", "survival", "gantt", "speed"}
    expected |= {"cost-0", "cost-1", "cost-2"}
    assert expected | {f"slice-{name}" for name in simulated.space.parameters} == set(places)


def test_each_axis_of_numbers_says_what_it_counts(simulated: StudyResult, tmp_path: Path) -> None:
    charts = figures(report(simulated, tmp_path))
    axes = {
        f"{key} {axis}": chart["layout"][axis]["title"]["text"]
        for key, chart in charts.items()
        for axis in ("xaxis", "yaxis")
        if "title" in chart["layout"].get(axis, {})
    }
    assert {name for name, title in axes.items() if not title} == set()
    assert axes["cost-0 yaxis"] == axes["slice-depth yaxis"] == "val_accuracy"
    assert axes["gantt xaxis"].endswith("since the first epoch")


def test_the_summary_names_the_winner(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    text = report(make_result(make_trial(0), make_trial(1, values=(0.1, 0.75))), tmp_path)
    assert "<h2>Best trial: 1</h2>" in text
    assert "val_accuracy 0.75 at epoch 2 of 2 (metric.at: last)." in text
    assert "<b>4</b><span>core-hours reserved</span>" in text
    assert re.search(r'<tr class="best"><td>1</td>', text)


def test_a_winner_of_unknown_configuration_is_shown_without_a_command(
    make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path
) -> None:
    """An earlier version recorded it, and its space was edited."""
    text = report(make_result(make_trial(0, parameters={"removed": 1})), tmp_path)
    assert "<h2>Best trial: 0</h2>" in text
    assert "<div><span>removed</span>1</div>" in text
    assert "No trial has a finite" not in text
    assert 'id="command"' not in text


def test_a_residual_attention_network_has_a_name(
    make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path
) -> None:
    trials = [make_trial(n, parameters={"network": network}) for n, network in enumerate((None, "timm/x"))]
    text = report(make_result(*trials), tmp_path)
    assert "<div><span>network</span>attention</div>" in text
    assert figures(text)["slice-network"]["data"][0]["customdata"] == [[0, "attention"], [1, "timm/x"]]


def test_the_points_of_a_cost_name_the_epoch_of_their_value(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trial = dataclasses.replace(make_trial(0, values=(0.25, 0.75, 0.5)), at="best")
    (points, _) = costs(make_result(trial))[0].data
    assert (points["y"], points["customdata"]) == ([0.75], [[0, 2, 3]])
    assert "%{y} at epoch %{customdata[1]} of %{customdata[2]}" in points["hovertemplate"]


def test_a_trial_that_diverged_at_the_shared_epoch_is_not_counted_as_a_value(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [make_trial(n, values=(0.5,), parameters={"depth": 56 + 36 * n}) for n in range(2)]
    result = make_result(*trials, make_trial(2, TrialState.DIVERGED, (math.nan,)))
    notes = {panel.heading: panel.note for panel in panels(result)}
    expected = "val_accuracy after epoch 1, where 2 trials have a value"
    assert f"coloured by its {expected}." in notes["Parallel coordinates"]
    assert notes["Slices"] == f"{expected}, coloured by final state."


def test_trials_that_differ_in_no_parameter_have_no_plots_of_parameters(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """The final trainings of one configuration differ in the seed alone."""
    headings = {panel.heading for panel in panels(make_result(make_trial(0), make_trial(1)))}
    assert "Learning curves" in headings
    assert not {"Parallel coordinates", "Slices"} & headings


def test_a_plot_against_a_parameter_shows_the_whole_axis(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Plotly leaves out a label that is beyond the points."""
    trials = [make_trial(n, parameters={"learning_rate": 0.1 + n / 100}) for n in range(2)]
    (chart,) = slices(make_result(*trials), {0: 0.5, 1: 0.5})
    low, high = chart.layout["xaxis"]["range"]
    assert low < chart.layout["xaxis"]["tickvals"][0]
    assert chart.layout["xaxis"]["tickvals"][-1] < high


def test_names_and_values_are_escaped(make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path) -> None:
    script_tag = "</script><script>alert(1)</script>"
    trials = [make_trial(n, parameters={script_tag: f"{script_tag}{n}"}, error=script_tag) for n in range(3)]
    result = make_result(*trials, best=None, name=script_tag, metric=script_tag, failure=script_tag)
    text = report(result, tmp_path)
    assert script_tag not in text
    assert html.escape(script_tag) in text
    assert f"slice-{script_tag}" in figures(text)


def test_each_state_has_one_legend_entry_and_its_colour(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord]
) -> None:
    lines = [
        line for line in learning_curves(make_result(*trials_of_every_state)).data if "legendgroup" in line
    ]
    named = {line["legendgroup"]: line["marker"]["color"] for line in lines if line.get("showlegend", True)}
    assert named == {
        trial.state.value: STATE_COLOUR[trial.state] for trial in trials_of_every_state if trial.epochs
    }
    assert set(STATE_ORDER) == set(TrialState)


def test_learning_curves_start_at_epoch_one_and_are_separate(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0, values=(0.1, 0.2, 0.3)), make_trial(1, values=(0.4,))]
    lines, end_markers, winner = learning_curves(make_result(*trials)).data
    assert lines["x"] == [1, 2, 3, None, 1, None]
    assert lines["y"] == [0.1, 0.2, 0.3, None, 0.4, None]
    assert lines["customdata"] == [0, 0, 0, None, 1, None]
    assert (end_markers["x"], end_markers["y"]) == ([3, 1], [0.3, 0.4])
    assert (winner["name"], winner["y"]) == ("best: trial 0", [0.1, 0.2, 0.3])


@pytest.mark.parametrize("state", SearchState)
def test_only_the_page_of_a_running_search_is_reloaded(
    state: SearchState, make_result: MakeResult, tmp_path: Path
) -> None:
    text = report(make_result(state=state), tmp_path)
    assert ('http-equiv="refresh"' in text) == (state is SearchState.RUNNING)
    assert f'<span class="badge {state.value}">' in text


def test_the_page_names_the_time_zone_of_its_time(
    make_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-5")
        time.tzset()
        text = report(make_result(), tmp_path)
    time.tzset()
    assert re.search(r">\d{4}-\d\d-\d\d \d\d:\d\d XYZ<", text)


def test_the_pareto_front_is_drawn_through_its_points(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    by_gmacs = costs(make_result(*trials, costs=make_costs(4.0, 5.0, 1.0)))[0]
    _, front = by_gmacs.data
    assert list(zip(front["x"], front["y"], strict=True)) == [(1.0, 0.8), (4.0, 0.9)]
    assert by_gmacs.layout["xaxis"]["title"]["text"] == "GMACs an image"


def test_the_summary_names_the_front_and_the_failure(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts, tmp_path: Path
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.8))]
    result = make_result(*trials, costs=make_costs(4.0, 1.0), against="gmacs", failure="Too many <failures>.")
    text = report(result, tmp_path)
    assert "Pareto front of val_accuracy against gmacs, the cheapest first: 1, 0." in text
    assert "Too many &lt;failures&gt;." in text


def test_compared_searches_are_side_by_side(simulated: StudyResult, tmp_path: Path) -> None:
    other = dataclasses.replace(simulated, name="other")
    write_report(simulated, tmp_path / "report.html", compared=[other])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {line["name"] for line in figures(text)["incumbents"]["data"]} == {"att92", "other"}
    assert [cells[0] for cells in PageParser(text).rows[1:3]] == ["att92", "other"]


def test_failures_are_shown_with_their_trials(simulated: StudyResult, tmp_path: Path) -> None:
    text = report(simulated, tmp_path)
    assert "<h2>What went wrong</h2>" in text
    assert "crashed on purpose" in text
    assert "val_accuracy was not finite" in text


def test_figures_of_every_state_contain_no_nan(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord], tmp_path: Path
) -> None:
    unknown = {trial.number: TrialCost(params_m=math.nan, gmacs=math.nan) for trial in trials_of_every_state}
    text = report(make_result(*trials_of_every_state, costs=unknown), tmp_path)
    assert [key for key in figures(text) if key.startswith("cost")] == ["cost-0"]


def test_the_reasons_of_the_scheduler_are_a_list(
    make_result: MakeResult, make_trial: MakeTrial, tmp_path: Path
) -> None:
    text = report(make_result(make_trial(0), scheduling=("First rung: <epoch 3>.",)), tmp_path)
    assert "<ul><li>First rung: &lt;epoch 3&gt;.</li></ul>" in text


def test_the_labels_of_long_choices_end_at_their_ticks(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Plotly leaves out a label that ends beyond the right edge of the plot."""
    networks = ("timm/resnet18", "timm/resnet14t", "timm/resnext26ts")
    trials = [
        make_trial(n, parameters={"network": network, "depth": 50 + n}) for n, network in enumerate(networks)
    ]
    values = {trial.number: trial.value for trial in trials}
    axes = {chart.key: chart.layout["xaxis"] for chart in slices(make_result(*trials), values)}
    assert axes["slice-network"]["tickangle"] < 0
    assert "tickangle" not in axes["slice-depth"]


def test_plots_show_tags_and_entities_in_names_as_they_are(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Plotly makes `<b>cat</b>` a bold `cat`, and `&lt;` a `<`."""
    choices = ("<b>a</b>", "&lt;")
    trials = [make_trial(n, parameters={"init_from": choice}) for n, choice in enumerate(choices)]
    result = make_result(*trials, metric="val_f1/<b>cat</b>", best=None)
    title, shown = "val_f1/&lt;b>cat&lt;/b>", ["&amp;lt;", "&lt;b>a&lt;/b>"]
    values = {0: 0.25, 1: 0.5}
    (plot,) = slices(result, values)
    assert sorted(plot.layout["xaxis"]["ticktext"]) == shown
    assert sorted(text for _, text in plot.data[0]["customdata"]) == shown
    layouts = [chart.layout for chart in (plot, learning_curves(result), costs(result)[0])]
    assert [layout["yaxis"]["title"]["text"] for layout in layouts] == [title] * 3
    lines = parallel_coordinates(result, values, 1).layout
    assert lines["xaxis"]["ticktext"][-1] == "val f1/&lt;b>cat&lt;/b> at epoch 1"
    assert {label["text"] for label in lines["annotations"]} >= set(shown)
    group = Group(value=choices[0], trials=1, epochs=2, hours=1.0, best=())
    assert group_curves(result, "init_from", [group], 1.0).data[0]["name"] == shown[1]


def test_an_interrupted_trial_is_unfinished_at_its_rung(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    bars = survival_bars(make_result(make_trial(0), make_trial(1, TrialState.INTERRUPTED, (0.5,)))).data
    assert {bar["name"]: bar["y"] for bar in bars} == {
        "continued or finished": [1, 1],
        "stopped there": [0, 0],
        "failed or unfinished": [1, 0],
    }
