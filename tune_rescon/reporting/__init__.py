"""What a person sees: lines while a search runs, a table at its end, the report, the dry run.

Names are loaded on first use: a dry run needs no plots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.page import write_report
    from tune_rescon.reporting.table import print_result, result_table

__all__ = ["EventLines", "print_dry_run", "print_result", "result_table", "write_report"]

__getattr__ = lazy_names(
    __name__,
    {
        "EventLines": "events",
        "print_dry_run": "dry_run",
        "print_result": "table",
        "result_table": "table",
        "write_report": "page",
    },
)
