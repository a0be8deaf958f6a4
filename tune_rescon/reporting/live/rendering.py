"""How a search looks at one moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len
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
        table = (
            list(_trials(seen, layout, ramp=ASCII if options.ascii_only else BLOCKS)) if layout.rows else []
        )
        # A line of the title, one of the cursor, and two that part the whole from its surroundings.
        space = [Text()] if len(table) + layout.facts + 4 <= console.height else []
        yield from space
        yield _title(seen, width)
        yield from table
        yield from space
        label = max(len(name) for name, _ in facts)
        for name, text in facts[: layout.facts]:
            yield _line([(Text(name, style="dim"), label, False), (text, width - label - GAP, False)])


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
    name = min(cell_len(seen.name), width // 3)
    bar = width // 4 if width >= BAR_FROM else 0
    if not bar:
        return _line([(Text(seen.name, style="bold"), name, False), (Text(words), width - name - GAP, False)])
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for characters in (name, bar, width - name - bar - 2 * GAP):
        grid.add_column(width=characters, no_wrap=True, overflow="ellipsis")
    progress = ProgressBar(
        total=seen.total, completed=seen.done, complete_style="cyan", finished_style="green"
    )
    grid.add_row(Text(seen.name, style="bold"), progress, Text(words))
    return grid


def _trials(seen: Snapshot, layout: Layout, *, ramp: str) -> Iterator[Text]:
    # Lines put together here: as a rich table of 40 rows they took four times as long to draw.
    columns = [
        ("trial", NUMBER, True),
        ("epoch", _epoch_wide(seen), True),
        (seen.metric, _value_wide(seen), True),
        ("curve", layout.curve, False),
        ("images/s", layout.speed, True),
        ("parameters", layout.parameters, False),
    ]
    shown = [column for column in columns if column[1]]
    yield _line([(Text(name, style="dim"), width, right) for name, width, right in shown])
    for trial in seen.running[: layout.rows]:
        cells = _cells(seen, trial, layout, ramp)
        yield _line([(cell, width, right) for cell, (_, width, right) in zip(cells, shown, strict=True)])
    hidden = len(seen.running) - layout.rows
    if hidden:
        yield Text(f"{'':{NUMBER}}  and {hidden} more running", style="dim")


def _line(cells: Sequence[tuple[Text, int, bool]]) -> Text:
    """Cells of these widths, cut where they are longer, each to the left or to the right, a gap between."""
    for text, width, right in cells:
        text.truncate(max(width, 1), overflow="ellipsis")
        missing = max(width - text.cell_len, 0)
        if right:
            text.pad_left(missing)
        elif text is not cells[-1][0]:
            text.pad_right(missing)
    line = Text(" " * GAP, no_wrap=True).join(text for text, _, _ in cells)
    line.no_wrap = True
    return line


def _cells(seen: Snapshot, trial: TrialSummary, layout: Layout, ramp: str) -> Iterator[Text]:
    yield Text(f"{trial.number:04d}", style=STATE_STYLE[TrialState.RUNNING])
    yield Text(f"{trial.epochs}/{seen.last_epoch}")
    yield Text(figure(trial.last_value))
    if layout.curve:
        yield Text(sparkline(trial.curve, layout.curve, ramp=ramp), style="green")
    if layout.speed:
        yield Text(_speed(seen.speeds.get(trial.number, math.nan)))
    if layout.parameters:
        yield Text(pairs(trial.parameters), style="dim")


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:,.0f}" if math.isfinite(images_per_second) else "-"


def _facts(seen: Snapshot) -> Iterator[tuple[str, Text]]:
    """Lines below the table, the most important first."""
    if seen.best is not None:
        yield "Best", _best(seen.best)
    if seen.waiting:
        yield "MLflow", Text(f"{seen.waiting} waiting", style="yellow")
    if seen.rungs:
        counts = ", ".join(f"{rung.went_on} of {rung.came} after {rung.epoch}" for rung in seen.rungs)
        yield "Went on", Text(f"{counts} epochs" if seen.rungs[-1].epoch > 1 else f"{counts} epoch")
    yield "Spent", Text(f"{duration(seen.compute_hours * 3600)} of {seen.device} time{_pace(seen)}")
    if seen.ended:
        yield "Ended", _fates(seen)


def _best(best: TrialSummary) -> Text:
    return Text.assemble(
        (f"trial_{best.number:04d}", "bold"),
        f": {best.metric} ",
        (figure(best.value), "bold"),
        f" after epoch {best.value_epoch}, ",
        (best.state.value, STATE_STYLE[best.state]),
    )


def _pace(seen: Snapshot) -> str:
    speeds = [value for value in seen.speeds.values() if math.isfinite(value)]
    words = f"; now {math.fsum(speeds):,.0f} images/s" if speeds else ""
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
