"""The whole page: parts, figures, library, style and script in one file."""

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

#: Seconds after which a page of a running search asks for the next one.
REFRESH: Final = 60

#: Before anything is shown, so that a page a reader turned dark does not flash.
_THEME: Final = (
    'try{const t=sessionStorage.getItem("theme");if(t)document.documentElement.dataset.theme=t}'
    "catch{/* a browser that stores nothing */}"
)


def write_report(result: StudyResult, path: Path, *, compared: Sequence[StudyResult] = ()) -> None:
    """Write the report of a search to ``path``, whole or not at all; beside it, the ``compared`` ones."""
    write_atomically(path, render_page(result, compared=compared, written=datetime.now()))


def render_page(result: StudyResult, *, compared: Sequence[StudyResult] = (), written: datetime) -> str:
    """The page as text. It fetches nothing; while the search runs, a browser loads it anew each minute."""
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
        # A page has an icon, else a browser asks its server for one.
        f'<link rel="icon" href="data:,">{refresh}'
        f"<style>{_asset('style.css')}</style><script>{_THEME}</script></head>"
    )


def _is_running(result: StudyResult) -> bool:
    return result.state is SearchState.RUNNING


def _scripts(shown: Sequence[Panel]) -> Iterator[str]:
    """At the end: the text is there before the library is read. Without a plot there is no library."""
    charts = [chart for panel in shown for chart in panel.charts]
    yield f'<script type="application/json" id="figures">{_figures(charts)}</script>'
    if charts:
        yield f"<script>{get_plotlyjs()}</script>"
    yield f"<script>{_asset('page.js')}</script>"


def _figures(charts: Sequence[Chart]) -> str:
    text = json.dumps(
        {chart.key: chart.to_dict() for chart in charts}, separators=(",", ":"), allow_nan=False
    )
    # Nothing in it may end the element it stands in.
    return text.replace("<", "\\u003c")


@cache
def _asset(name: str) -> str:
    return files("tune_rescon.reporting.page").joinpath("assets", name).read_text(encoding="utf-8")
