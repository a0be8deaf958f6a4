"""How a search looks at one moment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tune_rescon.config import TrialState
from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.live.layout import GAP, Layout, fit
from tune_rescon.reporting.live.sparkline import ASCII, BLOCKS, sparkline
from tune_rescon.reporting.live.state import Snapshot
from tune_rescon.reporting.words import duration, figure, pairs, roughly
from tune_rescon.tuning import ClusterSize, TrialSummary

__all__ = ["SearchTable"]

#: Characters of the title without which a bar would be no bar.
BAR_FROM: Final = 60

#: Characters of a trial's number, and of a value whose metric has a shorter name.
NUMBER: Final = 5
VALUE: Final = 9


class SearchTable:
    """A renderable as large as the terminal has room for."""

    def __init__(self, seen: Snapshot) -> None:
        """Draw ``seen``."""
        self._seen = seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, the running trials, and below them what is known of the whole."""
        seen = self._seen
        # A line that fills the terminal to its edge would wrap in some.
        width = options.max_width - 1
        facts = list(_facts(seen))
        layout = fit(
            width, console.height, running=len(seen.running), facts=len(facts), always=_always_wide(seen)
        )
        yield _title(seen, width)
        if layout.rows:
            yield _trials(seen, layout, ramp=ASCII if options.ascii_only else BLOCKS)
        hidden = len(seen.running) - layout.rows
        if hidden and layout.rows:
            yield Text(f"{'':{NUMBER}}  and {hidden} more running", style="dim")
        if layout.facts:
            yield _fact_lines(facts[: layout.facts], width)


def _always_wide(seen: Snapshot) -> int:
    return NUMBER + _epoch_wide(seen) + _value_wide(seen) + 2 * GAP


def _epoch_wide(seen: Snapshot) -> int:
    return max(len("epoch"), len(f"{seen.last_epoch}/{seen.last_epoch}"))


def _value_wide(seen: Snapshot) -> int:
    return max(VALUE, len(seen.metric))


def _title(seen: Snapshot, width: int) -> RenderableType:
    words = f"{seen.done} of {seen.total} trials ended"
    if seen.seconds_left is not None and seen.done < seen.total:
        words += f", {roughly(seen.seconds_left)} left"
    name = min(len(seen.name), width // 3)
    bar = width // 4 if width >= BAR_FROM else 0
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_column(width=name, no_wrap=True, overflow="ellipsis", style="bold")
    cells: list[RenderableType] = [Text(seen.name)]
    if bar:
        grid.add_column(width=bar)
        cells.append(ProgressBar(total=seen.total, completed=seen.done))
    room = width - name - GAP - (bar + GAP if bar else 0)
    grid.add_column(width=max(min(len(words), room), 1), no_wrap=True, overflow="ellipsis")
    grid.add_row(*cells, Text(words))
    return grid


def _trials(seen: Snapshot, layout: Layout, *, ramp: str) -> RenderableType:
    table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    head = ["trial", "epoch", seen.metric]
    widths = [NUMBER, _epoch_wide(seen), _value_wide(seen)]
    for name, characters in (("curve", layout.curve), ("images/s", layout.speed)):
        if characters:
            head.append(name)
            widths.append(characters)
    if layout.parameters:
        head.append("parameters")
        widths.append(layout.parameters)
    for name, characters in zip(head, widths, strict=True):
        left = name in ("curve", "parameters")
        table.add_column(
            width=characters, justify="left" if left else "right", no_wrap=True, overflow="ellipsis"
        )
    table.add_row(*(Text(name, style="dim") for name in head))
    for trial in seen.running[: layout.rows]:
        table.add_row(*_cells(seen, trial, layout, ramp))
    return table


def _cells(seen: Snapshot, trial: TrialSummary, layout: Layout, ramp: str) -> Iterator[Text]:
    yield Text(f"{trial.number:04d}", style=STATE_STYLE[TrialState.RUNNING])
    yield Text(f"{trial.epochs}/{seen.last_epoch}")
    yield Text(figure(trial.value))
    if layout.curve:
        yield Text(sparkline(trial.values, layout.curve, ramp=ramp), style="green")
    if layout.speed:
        yield Text(_speed(seen.speeds.get(trial.number, math.nan)))
    if layout.parameters:
        yield Text(pairs(trial.parameters), style="dim")


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if math.isfinite(images_per_second) else "-"


def _fact_lines(facts: list[tuple[str, Text]], width: int) -> RenderableType:
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    label = max(len(name) for name, _ in facts)
    grid.add_column(width=label, no_wrap=True, style="dim")
    grid.add_column(max_width=max(width - label - GAP, 1), no_wrap=True, overflow="ellipsis")
    for name, text in facts:
        grid.add_row(name, text)
    return grid


def _facts(seen: Snapshot) -> Iterator[tuple[str, Text]]:
    """Lines below the table, the most important first."""
    if seen.best is not None:
        yield "Best", _best(seen.best)
    if seen.waiting:
        yield "MLflow", Text(f"{seen.waiting} waiting", style="yellow")
    if seen.rungs:
        counts = ", ".join(f"{rung.went_on} of {rung.came} after {rung.epoch}" for rung in seen.rungs)
        yield "Went on", Text(f"{counts} epochs" if seen.rungs[-1].epoch > 1 else f"{counts} epoch")
    yield "Spent", Text(f"{duration(seen.compute_hours * 3600)} of {seen.device} time; now {_pace(seen)}")
    if seen.ended:
        yield "Ended", _fates(seen)


def _best(best: TrialSummary) -> Text:
    return Text.assemble(
        (f"trial_{best.number:04d}", "bold"),
        f": {best.metric} ",
        (figure(best.value), "bold"),
        f" after epoch {best.epochs}, ",
        (best.state.value, STATE_STYLE[best.state]),
    )


def _pace(seen: Snapshot) -> str:
    speed = math.fsum(value for value in seen.speeds.values() if math.isfinite(value))
    words = f"{speed:,.0f} images/s"
    return f"{words} on {_cluster(seen.cluster)}" if seen.cluster else words


def _cluster(size: ClusterSize) -> str:
    devices = f"{size.gpus:g} GPU" if size.gpus else f"{size.cpus:g} CPU"
    count = size.gpus or size.cpus
    return f"{size.nodes} node{'s' * (size.nodes != 1)}, {devices}{'s' * (count != 1)}"


def _fates(seen: Snapshot) -> Text:
    parts = []
    for state, count in sorted(seen.ended.items(), key=lambda item: -item[1]):
        parts.append(Text.assemble(f"{count} ", (state.value.replace("_", " "), STATE_STYLE[state])))
    return Text(", ").join(parts)
