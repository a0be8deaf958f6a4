"""What a person sees: lines or a live table while a search runs, a table at its end, the report, the dry run.

Names are loaded on first use: a dry run needs no plots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.html import write_report
    from tune_rescon.reporting.live.view import LiveView
    from tune_rescon.reporting.table import print_result, result_table
    from tune_rescon.reporting.terminal import open_console

__all__ = [
    "EventLines",
    "LiveView",
    "open_console",
    "print_dry_run",
    "print_result",
    "result_table",
    "write_report",
]

__getattr__ = lazy_names(
    __name__,
    {
        "EventLines": "events",
        "LiveView": "live.view",
        "open_console": "terminal",
        "print_dry_run": "dry_run",
        "print_result": "table",
        "result_table": "table",
        "write_report": "html",
    },
)
