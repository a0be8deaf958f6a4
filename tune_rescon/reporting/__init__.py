"""Present a search: lines or a live table while it runs, a table at its end, the report and the dry run.

::

    analysis    the figures of a search, as plain values
    page        report.html
    formats     JSON, markdown, CSV
    plots       the plots as PNG

Names are loaded on first use, so that a dry run does not import the plotting libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.reporting.console import open_console, print_opening
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.formats import (
        csv_text,
        json_text,
        markdown_table,
        markdown_text,
        note_text,
        overviews_json,
    )
    from tune_rescon.reporting.live.view import LiveView
    from tune_rescon.reporting.overview import print_comparison, print_overviews
    from tune_rescon.reporting.page import render_page, write_report
    from tune_rescon.reporting.plots import write_plots
    from tune_rescon.reporting.run import LiveReport, SearchPresentation, resume_command, run_with_display
    from tune_rescon.reporting.table import print_result, result_table

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
    "run_with_display",
    "write_plots",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EventLines": "events",
        "LiveReport": "run",
        "LiveView": "live.view",
        "SearchPresentation": "run",
        "resume_command": "run",
        "run_with_display": "run",
        "csv_text": "formats",
        "json_text": "formats",
        "markdown_table": "formats",
        "markdown_text": "formats",
        "note_text": "formats",
        "open_console": "console",
        "overviews_json": "formats",
        "print_comparison": "overview",
        "print_dry_run": "dry_run",
        "print_opening": "console",
        "print_overviews": "overview",
        "print_result": "table",
        "render_page": "page",
        "result_table": "table",
        "write_plots": "plots",
        "write_report": "page",
    },
)
