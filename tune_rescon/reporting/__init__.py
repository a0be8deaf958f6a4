"""What a person sees: lines or a live table while a search runs, a table at its end, the report, the dry run.

::

    analysis    what can be said of a search, as plain values
    page        report.html
    documents   JSON, markdown, CSV
    plots       the plots as PNG

Names are loaded on first use: a dry run needs no plots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.reporting.documents import (
        csv_text,
        json_text,
        markdown_table,
        markdown_text,
        overviews_json,
    )
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.live.view import LiveView
    from tune_rescon.reporting.live_report import LiveReport
    from tune_rescon.reporting.note import note_text
    from tune_rescon.reporting.opening import print_opening
    from tune_rescon.reporting.overview import print_comparison, print_overviews
    from tune_rescon.reporting.page import render_page, write_report
    from tune_rescon.reporting.plots import write_plots
    from tune_rescon.reporting.presentation import SearchPresentation
    from tune_rescon.reporting.running import resume_command, run_shown
    from tune_rescon.reporting.table import print_result, result_table
    from tune_rescon.reporting.terminal import open_console

__all__ = [
    "EventLines",
    "LiveReport",
    "LiveView",
    "SearchPresentation",
    "csv_text",
    "json_text",
    "markdown_table",
    "markdown_text",
    "note_text",
    "open_console",
    "overviews_json",
    "print_comparison",
    "print_dry_run",
    "print_opening",
    "print_overviews",
    "print_result",
    "render_page",
    "result_table",
    "resume_command",
    "run_shown",
    "write_plots",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EventLines": "events",
        "LiveReport": "live_report",
        "LiveView": "live.view",
        "SearchPresentation": "presentation",
        "resume_command": "running",
        "run_shown": "running",
        "csv_text": "documents",
        "json_text": "documents",
        "markdown_table": "documents",
        "markdown_text": "documents",
        "note_text": "note",
        "open_console": "terminal",
        "overviews_json": "documents",
        "print_comparison": "overview",
        "print_dry_run": "dry_run",
        "print_opening": "opening",
        "print_overviews": "overview",
        "print_result": "table",
        "render_page": "page",
        "result_table": "table",
        "write_plots": "plots",
        "write_report": "page",
    },
)
