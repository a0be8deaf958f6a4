"""The panel that compares networks, or other groups of trials, at equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tune_rescon.reporting.analysis import Group, Incumbent, grouping, groups
from tune_rescon.reporting.formatting import (
    device_hours_unit,
    format_device_hours,
    format_number,
    setting_text,
)
from tune_rescon.reporting.page.chart import COLOURS, Chart, Panel, axis, dotted_line, rounded
from tune_rescon.tuning import StudyResult

__all__ = ["by_group"]


def by_group(result: StudyResult) -> Iterator[Panel]:
    """Yield the panel that compares networks, or other groups of trials, at equal cost."""
    found, name = groups(result), grouping(result)
    if not found or name is None:
        return
    shared = min(one.hours for one in found)
    within = format_device_hours(shared, result.device)
    yield Panel(
        heading=f"By {name.replace('_', ' ')}",
        note=f"Compare them at equal cost: at the dotted line, {within}, which is the least that was spent on"
        " one of them. A value counts whatever the epochs of its trial.",
        headings=(name, "trials", "epochs", "spent", "best", f"best within {within}"),
        rows=[
            (
                setting_text(name, one.value),
                str(one.trials),
                str(one.epochs),
                format_device_hours(one.hours, result.device),
                _reached(one.best[-1] if one.best else None),
                _reached(one.best_within(shared)),
            )
            for one in found
        ],
        charts=[_curves(result, name, found, shared)],
    )


def _reached(one: Incumbent | None) -> str:
    return "-" if one is None else f"{format_number(one.value)} (trial {one.number}, epoch {one.epoch})"


def _curves(result: StudyResult, name: str, found: Sequence[Group], shared: float) -> Chart:
    """Return the best value so far of each group, by the device-hours that the group had spent.

    Args:
        result: the search.
        name: the parameter whose values the groups have.
        found: the groups, the best first.
        shared: the device-hours that all groups have spent.
    """
    spent = device_hours_unit(result.device)
    return Chart(
        key="groups",
        label=f"best {result.metric} so far of each {name}, by its {spent}",
        data=[_line(name, one, COLOURS[index % len(COLOURS)]) for index, one in enumerate(found)],
        layout={
            "xaxis": axis(f"{spent} spent on it", rangemode="tozero"),
            "yaxis": axis(f"best {result.metric}"),
            "shapes": [dotted_line(shared)],
            "showlegend": True,
        },
        height=320,
    )


def _line(name: str, one: Group, colour: str) -> dict[str, Any]:
    ends = one.best[-1:]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": setting_text(name, one.value),
        "x": rounded([*(better.hours for better in one.best), *(one.hours for _ in ends)]),
        "y": rounded(better.value for better in (*one.best, *ends)),
        "customdata": [[better.number, better.epoch] for better in (*one.best, *ends)],
        "hovertemplate": "trial %{customdata[0]} at epoch %{customdata[1]}: %{y}",
        "line": {"shape": "hv", "width": 2, "color": colour},
    }
