"""report.html: one file that a browser opens without any network."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Final

import plotly.graph_objects as go

from tune_rescon.config import TrialState
from tune_rescon.reporting.rows import headings, ranked, row
from tune_rescon.reporting.words import duration, figure, pairs
from tune_rescon.tuning import StudyResult, TrialSummary, write_atomically

__all__ = ["write_report"]

#: Line colours by fate, apart for the colour-blind (Okabe and Ito's palette).
COLOUR: Final = {
    TrialState.RUNNING: "#56b4e9",
    TrialState.FINISHED: "#009e73",
    TrialState.STOPPED: "#e69f00",
    TrialState.DIVERGED: "#cc79a7",
    TrialState.OUT_OF_MEMORY: "#d55e00",
    TrialState.FAILED: "#d55e00",
    TrialState.INTERRUPTED: "#0072b2",
    TrialState.PAUSED: "#888888",
}

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
.best { font-weight: 600; }
code { overflow-wrap: anywhere; }
"""


def write_report(result: StudyResult, path: Path) -> None:
    """Write the report of a search to ``path``, whole or not at all."""
    title = html.escape(result.name)
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{html.escape(_summary(result))}</p>",
        *_plots(result),
        "<h2>Trials</h2>",
        _table(result),
    ]
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
    )
    write_atomically(path, f"{head}<body>{''.join(parts)}</body></html>")


def _summary(result: StudyResult) -> str:
    seconds = sum(result.compute_hours(trial) for trial in result.trials) * 3600
    text = f"{len(result.trials)} trials, {duration(seconds)} of {result.device} time."
    if result.failure is not None:
        text = f"{text} {result.failure}"
    if result.best is None:
        return f"{text} No trial has a finite {result.metric} yet."
    best = result.best
    return (
        f"{text} Best: trial {best.number}, {result.metric} {figure(best.value)} after epoch {best.epochs}"
        f" ({pairs(best.parameters)}).{_front_words(result)}"
    )


def _front_words(result: StudyResult) -> str:
    if not result.front:
        return ""
    numbers = ", ".join(str(trial.number) for trial in result.front)
    return f" Pareto front of {result.metric} against {result.against}, the cheapest first: trials {numbers}."


def _plots(result: StudyResult) -> list[str]:
    if not any(trial.epochs for trial in result.trials):
        return []
    return [
        "<h2>Learning curves</h2>",
        _plot(_curves(result), first=True),
        f"<h2>{html.escape(result.metric)} against cost</h2>",
        _plot(_costs(result), first=False),
    ]


def _plot(chart: go.Figure, *, first: bool) -> str:
    chart.update_layout(
        height=420,
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        # Above the plot: beside it, it would take half of a phone's width.
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        # A grey that reads on white and on black: the page follows the reader's light or dark setting.
        font={"color": "#888"},
    )
    chart.update_xaxes(gridcolor="#8884")
    chart.update_yaxes(gridcolor="#8884")
    # The library itself goes into the first plot only, so that the file is whole without a network.
    config = {"responsive": True, "displayModeBar": False}
    text: str = chart.to_html(full_html=False, include_plotlyjs=first, config=config)
    return text


def _curves(result: StudyResult) -> go.Figure:
    chart = go.Figure()
    shown: set[TrialState] = set()
    # An empty line would take its state's place in the legend, unseen.
    for trial in (trial for trial in result.trials if trial.epochs):
        chart.add_scatter(
            x=list(range(1, trial.epochs + 1)),
            y=list(trial.values),
            mode="lines+markers",
            name=trial.state.value,
            legendgroup=trial.state.value,
            showlegend=trial.state not in shown,
            line={"color": COLOUR[trial.state]},
            hovertext=f"trial {trial.number}: {pairs(trial.parameters)}",
        )
        shown.add(trial.state)
    chart.update_xaxes(title="epoch")
    chart.update_yaxes(title=result.metric)
    return chart


def _costs(result: StudyResult) -> go.Figure:
    # By the value that trials are ranked by, so that the front and the winner are where the table has them.
    trials = [trial for trial in result.trials if math.isfinite(trial.value)]
    chart = go.Figure()
    chart.add_scatter(
        x=[result.cost(trial) for trial in trials],
        y=[trial.value for trial in trials],
        mode="markers",
        marker={"color": [COLOUR[trial.state] for trial in trials], "size": 9},
        hovertext=[f"trial {trial.number}: {pairs(trial.parameters)}" for trial in trials],
        showlegend=False,
    )
    if result.front:
        chart.add_scatter(
            x=[result.cost(trial) for trial in result.front],
            y=[trial.value for trial in result.front],
            mode="lines+markers",
            name="Pareto front",
            # A step: between two points, what can be had is the cheaper one's value.
            line={"color": "#888", "dash": "dot", "shape": "hv"},
            marker={"symbol": "circle-open", "size": 16},
            hoverinfo="skip",
        )
    chart.update_xaxes(title=_cost_words(result))
    chart.update_yaxes(title=f"{result.metric} after the last epoch")
    return chart


def _cost_words(result: StudyResult) -> str:
    return f"{result.device}-hours" if result.against == "compute_hours" else "GMACs an image"


def _table(result: StudyResult) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings(result))
    body = "".join(_row(result, trial) for trial in ranked(result))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(result: StudyResult, trial: TrialSummary) -> str:
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row(result, trial))
    is_best = result.best is not None and trial.number == result.best.number
    return f'<tr class="best">{cells}</tr>' if is_best else f"<tr>{cells}</tr>"
