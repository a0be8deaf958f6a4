"""Bars: what mattered, who survived, who held which slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.analysis import Stretch, Timeline, rung_survival
from tune_rescon.reporting.fates import FATE_COLOUR, FATE_ORDER
from tune_rescon.reporting.page.charts.chart import MUTED, Chart, axis, rounded
from tune_rescon.tuning import StudyResult

__all__ = ["clock", "gantt", "importance_bars", "survival_bars"]

#: Pixels: of a slot's bar at most and at least, of the frame around the slots, and of all at most.
TALL: Final = 26
FLAT: Final = 7
FRAME: Final = 90
HIGHEST: Final = 900


def importance_bars(shares: Mapping[str, float]) -> Chart:
    """The share of each parameter, the most important on top."""
    names = list(shares)[::-1]
    return Chart(
        key="importance",
        label="importance of each parameter",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": rounded(shares[name] for name in names),
                "y": names,
                "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
                "marker": {"color": "#0072b2", "opacity": 0.85},
            }
        ],
        layout={
            "xaxis": axis("importance", tickformat=".0%", rangemode="tozero"),
            "yaxis": {"automargin": True},
            "bargap": 0.45,
        },
        height=max(240, 70 + 34 * len(names)),
    )


def survival_bars(result: StudyResult) -> Chart:
    """At each rung, the trials that came there, by what became of them."""
    rungs = rung_survival(result)
    parts = (
        ("went on or finished", FATE_COLOUR[TrialState.FINISHED], [rung.went_on for rung in rungs]),
        ("stopped there", FATE_COLOUR[TrialState.STOPPED], [rung.stopped for rung in rungs]),
        ("failed, wait or run", MUTED, [rung.otherwise for rung in rungs]),
    )
    return Chart(
        key="survival",
        label="trials that reached each rung",
        data=[
            {
                "type": "bar",
                "name": name,
                "x": [str(rung.epoch) for rung in rungs],
                "y": counts,
                "hovertemplate": f"epoch %{{x}}: %{{y}} {name}<extra></extra>",
                "marker": {"color": colour, "opacity": 0.85},
            }
            for name, colour, counts in parts
        ],
        layout={
            "barmode": "stack",
            "bargap": 0.4,
            "xaxis": axis("rung, epochs", type="category"),
            "yaxis": axis("trials"),
        },
        height=max(240, 70 + 34 * 5),
    )


def gantt(found: Timeline) -> Chart:
    """The slots, one above the other, and the trials that held them."""
    tall = min(TALL, max(FLAT, (HIGHEST - FRAME) // max(found.slots, 1)))
    begin, unit, seconds = clock(found)
    data = [
        _bars(state, stretches, begin, seconds)
        for state in FATE_ORDER
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


def clock(found: Timeline) -> tuple[float, str, float]:
    """What the axis of the slots' time begins at, its unit, and the unit's seconds."""
    begin = min((stretch.begun for stretch in found.stretches), default=0.0)
    return (begin, "hours", 3600.0) if found.seconds > 5400 else (begin, "minutes", 60.0)


def _bars(state: TrialState, stretches: Sequence[Stretch], begin: float, seconds: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": state.value,
        "y": [stretch.slot + 1 for stretch in stretches],
        # Else the bars of a fate are as wide as the slots between two of its trials.
        "width": 0.85,
        "base": rounded((stretch.begun - begin) / seconds for stretch in stretches),
        "x": rounded((stretch.ended - stretch.begun) / seconds for stretch in stretches),
        "customdata": [[stretch.number, *stretch.epochs] for stretch in stretches],
        "hovertemplate": "trial %{customdata[0]}, epochs %{customdata[1]} to %{customdata[2]}<extra></extra>",
        "marker": {"color": FATE_COLOUR[state], "opacity": 0.85, "line": {"width": 0.5, "color": "page"}},
    }
