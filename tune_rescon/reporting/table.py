"""The table at a search's end, and where everything is."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from tune_rescon.reporting.events import STATE_STYLE
from tune_rescon.reporting.words import duration, figure
from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["print_result", "result_table"]

#: Rows of the table at most; trials.csv has them all.
ROWS = 20


def result_table(result: StudyResult) -> Table:
    """The best trials first: by how far they got, then by value there."""
    names = list(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
    table = Table(title=f"{result.name}: {len(result.trials)} trials", title_justify="left")
    for heading in ("trial", "state", "epochs", result.metric, "best", "params M", "GMACs", "hours", *names):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for trial in sorted(result.trials, key=TrialSummary.rank_key)[:ROWS]:
        table.add_row(*_row(result, trial, names))
    return table


def print_result(result: StudyResult, console: Console) -> None:
    """The table, the winner, and where the report, the files and MLflow are."""
    console.print(result_table(result))
    fates = Counter(trial.state.value for trial in result.trials)
    console.print(", ".join(f"{count} {state}" for state, count in fates.most_common()))
    spent = sum(result.compute_hours(trial) for trial in result.trials)
    console.print(f"Compute: {duration(spent * 3600)} of a device")
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
    console.print(f"MLflow: mlflow ui --backend-store-uri {result.tracking_uri}", soft_wrap=True)


def _row(result: StudyResult, trial: TrialSummary, names: list[str]) -> list[str]:
    style, cost = STATE_STYLE[trial.state], result.costs[trial.number]
    sampled = [figure(trial.parameters.get(name)) for name in names]
    return [
        str(trial.number),
        f"[{style}]{trial.state.value}[/{style}]",
        str(trial.epochs),
        figure(trial.value),
        figure(trial.best_value),
        f"{cost.params_m:.2f}",
        f"{cost.gmacs:.3f}",
        f"{result.compute_hours(trial):.3f}",
        *sampled,
    ]
