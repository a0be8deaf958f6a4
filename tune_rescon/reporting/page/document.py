"""Write the whole page: sections, plots, library, style and script in one file."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from plotly.offline import get_plotlyjs

from tune_rescon.reporting.page import sections
from tune_rescon.reporting.page.chart_parts import Chart
from tune_rescon.reporting.page.plots import Panel, comparison_panels, panels
from tune_rescon.tuning import SearchState, StudyResult, write_atomically

__all__ = ["render_page", "write_report"]

#: Seconds after which the browser reloads the page of a running search.
REFRESH: Final = 60

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

    Args:
        result: the search.
        compared: other searches to compare with it.
        written: the time that the page shows as its date.
    """
    shown = list(panels(result))
    beside = list(comparison_panels([result, *compared])) if compared else []
    parts = [
        sections.title(result, written),
        sections.cards(result),
        '<div class="grid">',
        sections.best(result),
        *([sections.comparison_table([result, *compared])] if compared else []),
        *map(sections.panel, beside),
        *map(sections.panel, shown[:1]),
        sections.trials(result) if result.trials else "",
        *map(sections.panel, shown[1:]),
        sections.failure_table(result),
        sections.space_history(result),
        sections.images(result),
        "</div>",
    ]
    body = f"<main>{''.join(parts)}</main>{''.join(_scripts([*beside, *shown]))}"
    return f'<!doctype html><html lang="en">{_head(result)}<body>{body}</body></html>'


def _head(result: StudyResult) -> str:
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">' if _is_running(result) else ""
    return (
        f'<head><meta charset="utf-8"><title>{html.escape(result.name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # An explicit icon, because a browser requests one from the server otherwise.
        f'<link rel="icon" href="data:,">{refresh}'
        f"<style>{_asset('style.css')}</style><script>{_THEME}</script></head>"
    )


def _is_running(result: StudyResult) -> bool:
    return result.state is SearchState.RUNNING


def _scripts(shown: Sequence[Panel]) -> Iterator[str]:
    """Yield the scripts at the end of the page, so that the text is shown before the library is read.

    A page without a plot does not include the library.
    """
    charts = [chart for panel in shown for chart in panel.charts]
    yield f'<script type="application/json" id="figures">{_figures(charts)}</script>'
    if charts:
        yield f"<script>{get_plotlyjs()}</script>"
    yield f"<script>{_asset('page.js')}</script>"


def _figures(charts: Sequence[Chart]) -> str:
    text = json.dumps(
        {chart.key: chart.to_dict() for chart in charts}, separators=(",", ":"), allow_nan=False
    )
    # A "<" in the text could end the script element that contains it.
    return text.replace("<", "\\u003c")


@cache
def _asset(name: str) -> str:
    return files("tune_rescon.reporting.page").joinpath("assets", name).read_text(encoding="utf-8")
