"""Write the whole page: text and tables, plots, library, style and script in one file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tune_rescon.reporting.analysis import best_command, device_hours, failures, savings, timeline
from tune_rescon.reporting.formatting import (
    STATE_COLOUR,
    duration,
    format_device_hours,
    format_number,
    in_hand_message,
    pairs,
    value_text,
)
from tune_rescon.reporting.page.chart import Chart
from tune_rescon.reporting.page.panels import comparison_panels, panels
from tune_rescon.reporting.rows import (
    comparison_headings,
    comparison_row,
    differences,
    headings,
    ranked,
    row,
)
from tune_rescon.tuning import SearchFolder, SearchState, StudyResult, write_atomically

__all__ = ["render_page", "write_report"]

_LOGGER = logging.getLogger(__name__)

#: Seconds after which the browser reloads the page of a running search.
REFRESH: Final = 60

#: Maximum number of trials that one line lists.
NAMED: Final = 20

#: Number of rows above which a table is laid out only while it is visible.
LONG: Final = 50

#: Runs before the page is shown, so that a page that the reader set to dark does not flash.
_THEME: Final = (
    'try{const t=sessionStorage.getItem("theme");if(t)document.documentElement.dataset.theme=t}'
    "catch{/* a browser that stores nothing */}"
)


def write_report(result: StudyResult, path: Path, *, compared: Sequence[StudyResult] = ()) -> None:
    """Write the report of a search to ``path`` atomically.

    Args:
        result: the search.
        path: the file to write.
        compared: other searches to compare with it.
    """
    write_atomically(path, render_page(result, compared=compared, written=datetime.now()))


def render_page(result: StudyResult, *, compared: Sequence[StudyResult] = (), written: datetime) -> str:
    """Return the page as text.

    The page loads nothing from a network. While the search runs, the browser reloads the page each minute.
    A page without a plot does not include the library.

    Args:
        result: the search.
        compared: other searches to compare with it.
        written: the time that the page shows as its date.
    """
    shown = list(panels(result))
    results = [result, *compared] if compared else []
    beside = list(comparison_panels(results)) if compared else []
    charts = [chart for panel in (*beside, *shown) for chart in panel.charts]
    command = best_command(result)
    return _template().render(
        result=result,
        written=written,
        refresh=REFRESH if result.state is SearchState.RUNNING else None,
        cards=_cards(result),
        winner=None if command is None else result.best,
        winner_note=_winner_note(result),
        in_hand=in_hand_message(result),
        command=command,
        compared=results,
        differences=differences(results) if results else [],
        beside=beside,
        shown=shown,
        headings=headings(result),
        rows=[(trial, row(result, trial)) for trial in ranked(result)],
        mistakes=_mistakes(result),
        failures=failures(result),
        images=[f"{name}: {line}" for name, account in result.accounts.items() for line in account.lines()],
        figures=_figures(charts),
        library=Markup(get_plotlyjs()) if charts else "",
    )


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "comparison_row": comparison_row,
        "named": _named,
        "number": format_number,
        "pairs": pairs,
    }
    environment.globals |= {
        "colour": STATE_COLOUR,
        "comparison_headings": comparison_headings(),
        "long": LONG,
        "script": Markup(_asset("page.js")),
        "style": Markup(_asset("style.css")),
        "theme": Markup(_THEME),
    }
    return environment.from_string(_asset("page.html"))


def _cards(result: StudyResult) -> Iterator[tuple[str, str]]:
    """Yield the most important figures, each with the text below it."""
    best, saved, found = result.best, savings(result), timeline(result)
    ended = sum(trial.state.is_final for trial in result.trials)
    if best is not None:
        yield format_number(best.value), f"{result.metric} of trial {best.number}, epoch {best.value_epoch}"
    yield f"{ended} / {max(result.space.budget.trials, len(result.trials))}", "trials ended"
    yield f"{saved.epochs}", "epochs run"
    if saved.epochs_saved:
        hours = format_device_hours(saved.hours_saved, result.device)
        yield f"{saved.share:.0%}", f"epochs saved, about {hours}"
    yield format_device_hours(saved.hours, result.device), "reserved"
    spent = device_hours(result)
    if len(spent) > 1:
        yield from ((duration(hours * 3600), f"on {kind}") for kind, hours in spent.items())
    if found.stretches:
        yield f"{found.utilisation:.0%}", f"of {found.slots} slots' time in epochs"


def _mistakes(result: StudyResult) -> Mapping[str, Any] | None:
    """Return what the best network gets wrong; None if the search's folder does not have it.

    The file is that of another network, if the search was resumed since and has a better one.
    """
    path = SearchFolder(storage=result.folder.parent, name=result.folder.name).mistakes_json
    if result.best is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shown = (found["trial"], found["epoch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s cannot be read: %s", path, error)
        return None
    found.setdefault("classes", [])  # an earlier version wrote none
    return found if shown == (result.best.number, result.best.value_epoch) else None


def _winner_note(result: StudyResult) -> str:
    note = f"{value_text(result.best)}." if result.best else ""
    if not result.front:
        return note
    numbers = ", ".join(str(trial.number) for trial in result.front)
    return f"{note} Pareto front of {result.metric} against {result.against}, the cheapest first: {numbers}."


def _named(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:NAMED]))
    return shown if len(numbers) <= NAMED else f"{shown} and {len(numbers) - NAMED} more"


def _figures(charts: Sequence[Chart]) -> Markup:
    text = json.dumps(
        {chart.key: chart.to_dict() for chart in charts}, separators=(",", ":"), allow_nan=False
    )
    # A "<" in the text could end the script element that contains it.
    return Markup(text.replace("<", "\\u003c"))


@cache
def _asset(name: str) -> str:
    return files("tune_rescon.reporting.page").joinpath("assets", name).read_text(encoding="utf-8")
