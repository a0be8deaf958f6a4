"""Plots of a search as PNG files for MLflow, which shows images but not the report page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tune_rescon.metric_names import watched_metric
from tune_rescon.reporting.formatting import MUTED, RANK_STYLE, STATE_COLOUR, STATE_ORDER
from tune_rescon.reporting.summary import (
    CostFront,
    cost_fronts,
    parameter_axes,
    rank_classes,
    shared_epoch,
    values_at,
)
from tune_rescon.tuning import StudyResult, parameter_importance

__all__ = ["figures", "write_plots"]

DPI: Final = 110


def write_plots(result: StudyResult, folder: Path) -> list[Path]:
    """Write the plots that have data: learning curves, value against costs, parallel coordinates, importance.

    This function may run on any thread and needs no display, because each figure has its own canvas.

    Args:
        result: the search.
        folder: the folder of the files, which is created.

    Returns:
        The files; empty before the first epoch.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_saved(figure, folder / f"{name}.png") for name, figure in figures(result)]


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, facecolor="white")
    return path


def figures(result: StudyResult) -> Iterator[tuple[str, Figure]]:
    """Yield the plots that have data, each with its name; nothing before the first epoch."""
    if not any(trial.epochs for trial in result.trials):
        return
    yield "learning_curves", _drawn((9, 5), lambda axes: _curves(result, axes))
    if fronts := cost_fronts(result):
        yield "cost", _costs(result, fronts)
    epoch = shared_epoch(result)
    values = values_at(result, epoch)
    if values and parameter_axes(result):
        yield "parallel_coordinates", _drawn((10, 5), lambda axes: _coordinates(result, values, epoch, axes))
    shares = parameter_importance(result.space, {t.number: t for t in result.trials}, values)
    if shares:
        height = 0.8 + 0.45 * len(shares)
        yield "importance", _drawn((7, height), lambda axes: _importance(shares, epoch, axes))


def _drawn(size: tuple[float, float], draw: Callable[[Axes], None]) -> Figure:
    figure = _figure(size)
    draw(figure.add_subplot())
    return figure


def _figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def _escaped(text: str) -> str:
    """Return a user's text without formulas, which matplotlib finds between two dollar signs."""
    return text.replace("$", r"\$")


def _curves(result: StudyResult, axes: Axes) -> None:
    for state in STATE_ORDER:
        trials = [trial for trial in result.trials if trial.state is state and trial.epochs]
        if not trials:
            continue
        lines = [list(enumerate(trial.curve, 1)) for trial in trials]
        axes.add_collection(LineCollection(lines, colors=STATE_COLOUR[state], linewidths=0.9, alpha=0.7))
        x, y = [trial.epochs for trial in trials], [trial.curve[-1] for trial in trials]
        axes.scatter(x, y, s=9, color=STATE_COLOUR[state], label=f"{state.value} ({len(trials)})")
    for rung in result.rungs[:-1]:
        axes.axvline(rung, color=MUTED, linewidth=0.6, linestyle=":", zorder=0)
    axes.autoscale_view()
    axes.set(title=result.name, xlabel="epoch", ylabel=_escaped(watched_metric(result.metric)))
    axes.legend(frameon=False, fontsize=8)
    _style(axes)


def _costs(result: StudyResult, fronts: tuple[CostFront, ...]) -> Figure:
    figure = _figure((4 * len(fronts), 4))
    for place, front in enumerate(fronts, 1):
        axes = figure.add_subplot(1, len(fronts), place)
        x, y = [cost for _, cost in front.points], [trial.value for trial, _ in front.points]
        axes.scatter(x, y, s=10, alpha=0.7, color=[STATE_COLOUR[trial.state] for trial, _ in front.points])
        if front.front:
            axes.plot(
                [cost for _, cost in front.front],
                [trial.value for trial, _ in front.front],
                color=MUTED,
                drawstyle="steps-post",
                linestyle=":",
                marker="o",
                markersize=9,
                markerfacecolor="none",
                label="Pareto front",
            )
            axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel=front.title, ylabel=_escaped(result.metric) if place == 1 else "")
        axes.set_xlim(left=0)
        _style(axes)
    return figure


def _coordinates(result: StudyResult, values: dict[int, float], epoch: int, axes: Axes) -> None:
    scales = parameter_axes(result)
    low, high = min(values.values()), max(values.values())
    for rank_class in reversed(rank_classes(values, maximize=result.maximize)):
        colour, opacity, width = RANK_STYLE[rank_class.name]
        lines = [
            list(enumerate([*(s.positions[n] for s in scales), (values[n] - low) / ((high - low) or 1.0)]))
            for n in rank_class.numbers
        ]
        label = f"{rank_class.name} ({len(rank_class.numbers)})"
        axes.add_collection(
            LineCollection(lines, colors=colour, alpha=opacity, linewidths=width, label=label)
        )
    # Equal values are all at the bottom, and have one label.
    value_ticks = [(at, f"{value:.4g}") for value, at in {high: 1.0, low: 0.0}.items()]
    ticks = [*(s.ticks for s in scales), value_ticks]
    for place, labels in enumerate(ticks):
        axes.axvline(place, color=MUTED, linewidth=0.8, zorder=0)
        for at, text in labels:
            axes.annotate(
                _escaped(text),
                (place, at),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
            )
    names = [*(s.name.replace("_", " ") for s in scales), f"{_escaped(result.metric)}\nat epoch {epoch}"]
    axes.set(xlim=(-0.1, len(names) - 0.6), ylim=(-0.2, 1.05), yticks=[])
    axes.set_xticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _importance(shares: dict[str, float], epoch: int, axes: Axes) -> None:
    names = list(reversed(shares))
    axes.barh(names, [shares[name] for name in names], color="#0072b2", height=0.55)
    axes.set(xlabel=f"importance for the best tenth after epoch {epoch} (PED-ANOVA)")
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _style(axes)
    axes.grid(visible=False, axis="y")
