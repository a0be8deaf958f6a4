"""What a person sees: lines while a search runs, a table at its end, the report, the dry run.

Names are loaded on first use: a dry run needs no plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tune_rescon.reporting.dry_run import print_dry_run
    from tune_rescon.reporting.events import EventLines
    from tune_rescon.reporting.html import write_report
    from tune_rescon.reporting.table import print_result, result_table

__all__ = ["EventLines", "print_dry_run", "print_result", "result_table", "write_report"]

_HOMES: Final = {
    "EventLines": "events",
    "print_dry_run": "dry_run",
    "print_result": "table",
    "result_table": "table",
    "write_report": "html",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
