"""The table at a search's end, and where everything is."""

from __future__ import annotations

from collections import Counter
from typing import Final

from rich.console import Console
from rich.table import Table

from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.rows import headings, ranked, row
from tune_rescon.reporting.words import duration, figure
from tune_rescon.tuning import StudyResult

__all__ = ["print_result", "result_table"]

#: Rows of the table at most; trials.csv has them all.
ROWS: Final = 20


def result_table(result: StudyResult) -> Table:
    """The best trials, at most :data:`ROWS` of them."""
    table = Table(title=f"{result.name}: {len(result.trials)} trials", title_justify="left")
    for heading in headings(result):
        table.add_column(heading, justify="left" if heading == "state" else "right", overflow="fold")
    for trial in ranked(result)[:ROWS]:
        number, state, *rest = row(result, trial)
        style = STATE_STYLE[trial.state]
        table.add_row(number, f"[{style}]{state}[/{style}]", *rest)
    return table


def print_result(result: StudyResult, console: Console) -> None:
    """The table, the winner, and where the report, the files and MLflow are."""
    console.print(result_table(result))
    fates = Counter(trial.state.value for trial in result.trials)
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    console.print(", ".join(f"{count} {state}" for state, count in fates.most_common()), end="; ")
    console.print(f"{duration(spent * 3600)} of {result.device} time")
    if result.best is not None:
        best = result.best
        console.print(
            f"Best: trial_{best.number:04d}, {result.metric} {figure(best.value)} after epoch {best.epochs}"
            f" (best {figure(best.best_value)} at epoch {best.best_epoch})"
        )
    if result.unsent:
        console.print(f"MLflow did not take {result.unsent} updates in time; the study has them all.")
    console.print(f"Files:  {result.folder}", soft_wrap=True)
    console.print(f"Report: {result.folder / 'report.html'}", soft_wrap=True)
    console.print(f"MLflow: {_view(result.tracking_uri)}", soft_wrap=True)


def _view(uri: str) -> str:
    """How to look at the runs: a server is there already, a database needs one."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
