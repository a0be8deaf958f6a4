"""Present a search: lines or a live table while it runs, a table at its end, the report and the dry run.

::

    dry_run               what a search would do and cost, before it runs
    run                   a search with its display: events or live_view, then terminal, page and png_plots
    summary, timeline     the figures of a search, as plain values
    formats, formatting   their text: rows, JSON, CSV, Markdown; numbers, units, colours
    page                  report.html, with charts and search_charts; the page of a network's mistakes

Names are loaded on first use, so that a dry run does not import the plotting libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.formats import (
        csv_text,
        json_text,
        markdown_table,
        markdown_text,
        mlflow_note,
        overviews_json,
    )
    from tune_rescon.reporting.live_view import LiveView
    from tune_rescon.reporting.page import mistakes_page, render_page, write_report
    from tune_rescon.reporting.png_plots import write_plots
    from tune_rescon.reporting.run import LiveReport, SearchPresentation, resume_command, run_with_display
    from tune_rescon.reporting.terminal import (
        open_console,
        print_comparison,
        print_opening,
        print_overviews,
        print_result,
        result_table,
    )
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
