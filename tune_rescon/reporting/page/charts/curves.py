"""Learning curves, coloured by fate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Final

from tune_rescon.config import TrialState, watched_metric
from tune_rescon.reporting.fates import FATE_COLOUR, FATE_ORDER
from tune_rescon.reporting.page.charts.chart import Chart, axis, rounded
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["learning_curves"]

#: Lines of many stopped trials are a background.
_FAINT: Final = {TrialState.STOPPED: 0.45, TrialState.PAUSED: 0.45}

#: Lines that would hide each other if they were thicker.
MANY: Final = 150


def learning_curves(result: StudyResult) -> Chart:
    """A line for each trial, its end marked, and the rungs.

    One trace holds all lines of a state, with gaps between: a thousand traces would take seconds to draw.
    """
    data: list[dict[str, Any]] = []
    for state in FATE_ORDER:
        trials = [trial for trial in result.trials if trial.state is state and trial.epochs]
        if trials:
            data += [_lines(state, trials), _ends(state, trials)]
    if result.best is not None:
        data.append(_winner(result.best))
    return Chart(
        key="curves",
        label=f"{watched_metric(result.metric)} by epoch, a line for each trial",
        data=data,
        layout={
            "xaxis": axis("epoch", rangemode="tozero"),
            "yaxis": axis(watched_metric(result.metric)),
            "shapes": [_rung(level) for level in result.levels[:-1]],
        },
        height=440,
    )


def _lines(state: TrialState, trials: Sequence[TrialSummary]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(chain.from_iterable([*range(1, t.epochs + 1), None] for t in trials)),
        "y": list(chain.from_iterable([*rounded(t.curve), None] for t in trials)),
        "customdata": list(chain.from_iterable([t.number] * t.epochs + [None] for t in trials)),
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra></extra>",
        "legendgroup": state.value,
        "showlegend": False,
        "line": {"color": FATE_COLOUR[state], "width": 1.3 if len(trials) < MANY else 0.6},
        "opacity": _FAINT.get(state, 0.9),
    }


def _ends(state: TrialState, trials: Sequence[TrialSummary]) -> dict[str, Any]:
    """Where each line ends; of one epoch, there is no more of it."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{state.value} ({len(trials)})",
        "x": [trial.epochs for trial in trials],
        "y": rounded(trial.curve[-1] for trial in trials),
        "customdata": [trial.number for trial in trials],
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y}<extra></extra>",
        "legendgroup": state.value,
        "marker": {"color": FATE_COLOUR[state], "size": 5},
        "opacity": 0.85,
    }


def _winner(trial: TrialSummary) -> dict[str, Any]:
    """The best trial's line, once more and above all others."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"best: trial {trial.number}",
        "x": list(range(1, trial.epochs + 1)),
        "y": rounded(trial.curve),
        "hoverinfo": "skip",
        "line": {"color": "ink", "width": 2.2},
    }


def _rung(level: int) -> dict[str, Any]:
    return {
        "type": "line",
        "layer": "below",
        "x0": level,
        "x1": level,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "#8886", "width": 1, "dash": "dot"},
    }
