"""The charts over the time of a search: which trial held which slot, and how busy the devices were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.analysis import GpuUse, Stretch, Throughput, Timeline
from tune_rescon.reporting.formatting import STATE_COLOUR, STATE_ORDER
from tune_rescon.reporting.page.chart import Chart, axis, rounded

__all__ = ["gantt", "speed_steps", "utilisation_steps"]


#: Heights in pixels: maximum and minimum of a slot's bar, the frame around the slots, and the maximum in all.
TALL: Final = 26
FLAT: Final = 7
FRAME: Final = 90
HIGHEST: Final = 900


def gantt(found: Timeline) -> Chart:
    """Return the slots, one above the other, with the trials that held them."""
    tall = min(TALL, max(FLAT, (HIGHEST - FRAME) // max(found.slots, 1)))
    begin, unit, seconds = _clock(found)
    data = [
        _bars(state, stretches, begin, seconds)
        for state in STATE_ORDER
        if (stretches := [stretch for stretch in found.stretches if stretch.state is state])
    ]
    return Chart(
        key="gantt",
        label="which trial held which slot when",
        data=data,
        layout={
            "barmode": "overlay",
            "xaxis": axis(f"{unit} since the first epoch", rangemode="tozero"),
            "yaxis": axis(
                "slot", range=[found.slots + 0.5, 0.5], dtick=max(1, found.slots // 16), showgrid=False
            ),
        },
        height=FRAME + tall * max(found.slots, 3),
    )


def _clock(found: Timeline) -> tuple[float, str, float]:
    """Return the time at which the axis of the slots begins, its unit, and the unit's seconds."""
    begin = min((stretch.begun for stretch in found.stretches), default=0.0)
    return (begin, "hours", 3600.0) if found.seconds > 5400 else (begin, "minutes", 60.0)


def _bars(state: TrialState, stretches: Sequence[Stretch], begin: float, seconds: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": state.value,
        "y": [stretch.slot + 1 for stretch in stretches],
        # Without a width, plotly makes a state's bars as wide as the distance between two of its slots.
        "width": 0.85,
        "base": rounded((stretch.begun - begin) / seconds for stretch in stretches),
        "x": rounded((stretch.ended - stretch.begun) / seconds for stretch in stretches),
        "customdata": [[stretch.number, *stretch.epochs] for stretch in stretches],
        "hovertemplate": "trial %{customdata[0]}, epochs %{customdata[1]} to %{customdata[2]}<extra></extra>",
        "marker": {"color": STATE_COLOUR[state], "opacity": 0.85, "line": {"width": 0.5, "color": "page"}},
    }


def speed_steps(found: Timeline, trained: Throughput) -> Chart:
    """Return the summed speeds of all trials over time."""
    begins = [trained.begun + index * trained.part for index in range(len(trained.speeds) + 1)]
    return Chart(
        key="speed",
        label="images trained per second by all trials at once",
        data=[_steps(found, begins, trained.speeds, colour="#0072b2", hover="%{y:.4~g} images/s")],
        layout=_over_time(found, axis("images/s, all trials", rangemode="tozero")),
        height=300,
    )


def utilisation_steps(found: Timeline, use: GpuUse) -> Chart:
    """Return the utilisation of the GPUs over time."""
    begins = [use.begun + index * use.part for index in range(len(use.levels) + 1)]
    return Chart(
        key="utilisation",
        label="utilisation of the GPUs",
        data=[_steps(found, begins, use.levels, colour="#009e73", hover="%{y:.0%}")],
        layout=_over_time(found, axis("GPU utilisation", range=[0, 1], tickformat=".0%")),
        height=220,
    )


def _steps(
    found: Timeline, begins: Sequence[float], levels: Sequence[float], *, colour: str, hover: str
) -> dict[str, Any]:
    """Return a filled line of ``levels``; ``begins`` has the begin of each and the end of the last one."""
    begin, _, seconds = _clock(found)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded((moment - begin) / seconds for moment in begins),
        "y": rounded([*levels, 0.0]),
        "line": {"shape": "hv", "width": 1.2, "color": colour},
        "fill": "tozeroy",
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _over_time(found: Timeline, yaxis: Mapping[str, Any]) -> dict[str, Any]:
    _, unit, _ = _clock(found)
    xaxis = axis(f"{unit} since the first epoch", rangemode="tozero")
    return {"xaxis": xaxis, "yaxis": yaxis, "showlegend": False}
