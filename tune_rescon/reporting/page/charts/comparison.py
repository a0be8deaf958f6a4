"""Several searches in one plot: how good each was, by what it had spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tune_rescon.reporting.analysis import incumbents
from tune_rescon.reporting.page.charts.chart import Chart, axis, rounded
from tune_rescon.tuning import StudyResult

__all__ = ["incumbent_curves"]

_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a94a0")


def incumbent_curves(results: Sequence[StudyResult]) -> Chart:
    """The best value so far of each, by device-hours."""
    devices = " or ".join(sorted({result.device for result in results}))
    metrics = ", ".join(sorted({result.metric for result in results}))
    return Chart(
        key="incumbents",
        label=f"best {metrics} so far, by {devices}-hours",
        data=[_line(result, _COLOURS[index % len(_COLOURS)]) for index, result in enumerate(results)],
        layout={
            "xaxis": axis(f"{devices}-hours spent", rangemode="tozero"),
            "yaxis": axis(f"{metrics} of the leader"),
            "showlegend": True,
        },
    )


def _line(result: StudyResult, colour: str) -> dict[str, Any]:
    leaders = incumbents(result)
    # On to the end: the last leader stayed the best.
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    ends = [leaders[-1]] if leaders else []
    return {
        "type": "scatter",
        "mode": "lines",
        "name": result.name,
        "x": rounded([*(leader.hours for leader in leaders), *(spent for _ in ends)]),
        "y": rounded(leader.value for leader in (*leaders, *ends)),
        "customdata": [[leader.number, leader.epoch] for leader in (*leaders, *ends)],
        "hovertemplate": "trial %{customdata[0]} at epoch %{customdata[1]}: %{y}",
        "line": {"shape": "hv", "width": 2, "color": colour},
    }
