"""Images trained per second, on the axis of the slots' time."""

from __future__ import annotations

from tune_rescon.reporting.analysis import Throughput, Timeline
from tune_rescon.reporting.page.charts.bars import clock
from tune_rescon.reporting.page.charts.chart import Chart, axis, rounded

__all__ = ["speed_steps"]


def speed_steps(found: Timeline, trained: Throughput) -> Chart:
    """All trials' speeds added up."""
    begin, unit, seconds = clock(found)
    begins = (trained.begun + index * trained.part for index in range(len(trained.speeds) + 1))
    return Chart(
        key="speed",
        label="images trained per second by all trials at once",
        data=[
            {
                "type": "scatter",
                "mode": "lines",
                "x": rounded((moment - begin) / seconds for moment in begins),
                "y": rounded([*trained.speeds, 0.0]),
                "line": {"shape": "hv", "width": 1.2, "color": "#0072b2"},
                "fill": "tozeroy",
                "hovertemplate": "%{y:.4~g} images/s<extra></extra>",
            }
        ],
        layout={
            "xaxis": axis(f"{unit} since the first epoch", rangemode="tozero"),
            "yaxis": axis("images/s, all trials", rangemode="tozero"),
            "showlegend": False,
        },
        height=300,
    )
