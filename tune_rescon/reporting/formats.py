"""Write a search as text for other programs and pages: JSON, markdown, CSV."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import trial_name
from tune_rescon.csv_cells import csv_line
from tune_rescon.errors import counted
from tune_rescon.reporting.analysis import (
    best_command,
    device_hours,
    devices_of,
    failures,
    gpu_use,
    rung_survival,
    savings,
    throughput,
    timeline,
)
from tune_rescon.reporting.formatting import (
    foreign_message,
    format_device_hours,
    format_number,
    in_hand_message,
    pairs,
    value_text,
)
from tune_rescon.reporting.rows import comparison_headings, comparison_row, differences, headings, ranked, row
from tune_rescon.tuning import SearchState, StudyResult
from tune_rescon.tuning.trial import TABLE_COLUMNS

if TYPE_CHECKING:
    from tune_rescon.tuning import SearchOverview, TrialRecord

__all__ = [
    "csv_text",
    "json_text",
    "markdown_table",
    "markdown_text",
    "note_text",
    "overviews_json",
]


#: Number of trials that the markdown lists.
BEST: Final = 5


def json_text(result: StudyResult, compared: Sequence[StudyResult] = ()) -> str:
    """Return one JSON document: the search, and the other searches under ``compared``.

    A number that is not finite is null.
    """
    document = {
        **_search(result),
        "compared": [_search(other) for other in compared],
        "differences": differences([result, *compared]),
    }
    return json.dumps(_finite(document), indent=2, allow_nan=False)


def csv_text(results: Sequence[StudyResult]) -> str:
    """Return the trials of all searches, in the order of their numbers; one column names the search.

    The parameters of all searches are the last columns. A cell is empty if its value is missing.
    """
    names = list(dict.fromkeys(name for result in results for t in result.trials for name in t.parameters))
    lines = [csv_line([*_FIGURES, *names])]
    for result in results:
        for trial in result.trials:
            figures = _figures(result, trial)
            lines.append(csv_line([*map(figures.get, _FIGURES), *map(trial.setting, names)]))
    return "".join(lines)


def markdown_text(result: StudyResult, compared: Sequence[StudyResult] = ()) -> str:
    """Return a markdown summary: the state, the best five trials, and the comparison with other searches."""
    saved = savings(result)
    summary = (
        f"{counted(len(result.trials), 'trial')}, {result.state.value}; {counted(saved.epochs, 'epoch')} in"
        f" {format_device_hours(saved.hours, result.device)},"
        f" {counted(saved.epochs_saved, 'epoch')} ({saved.share:.0%}) saved by early stopping."
    )
    lines = [f"# {result.name}", "", summary]
    lines += ["", _by_device(result)] if len(device_hours(result)) > 1 else []
    lines += ["", result.failure] if result.failure else []
    lines += ["", foreign_message(result.foreign)] if result.foreign else []
    if result.best is not None:
        best = result.best
        lines += ["", f"Best: trial {best.number}, {value_text(best)}: {pairs(best.parameters)}"]
    in_hand = in_hand_message(result)
    lines += ["", in_hand] if in_hand else []
    lines += ["", *markdown_table(headings(result), (row(result, trial) for trial in ranked(result)[:BEST]))]
    if compared:
        rows = (comparison_row(each) for each in (result, *compared))
        lines += ["", "## Compared", "", *markdown_table(comparison_headings(), rows)]
        lines += [f"\n{line}" for line in differences([result, *compared])]
    if result.scheduling:
        lines += ["", "## Scheduler", "", *(f"- {line}" for line in result.scheduling)]
    if result.space_history:
        lines += ["", "## Changes of the space", "", *(f"- {line}" for line in result.space_history)]
    found = [f"- {name}: {line}" for name, account in result.accounts.items() for line in account.lines()]
    lines += ["", "## Images", "", *found] if found else []
    command = best_command(result)
    lines += ["", "```", command, "```"] if command else []
    return "\n".join(lines) + "\n"


def _by_device(result: StudyResult) -> str:
    spent = device_hours(result)
    parts = (
        f"{format_number(round(hours, 3))} hour{'' if round(hours, 3) == 1 else 's'} on {kind}"
        for kind, hours in spent.items()
    )
    return f"By kind of device: {', '.join(parts)}."


def overviews_json(found: Sequence[SearchOverview]) -> str:
    """Return a JSON list of all searches of a storage."""
    return json.dumps(
        [
            _finite(
                {
                    "name": one.name,
                    "state": one.state.value if one.state else None,
                    "metric": one.metric,
                    "best": one.best,
                    "ended": one.ended,
                    "total": one.total,
                    "changed": one.changed.isoformat(timespec="seconds") if one.changed else None,
                    "problem": one.problem or None,
                }
            )
            for one in found
        ],
        indent=2,
        allow_nan=False,
    )


_FIGURES: Final = ("search", "metric", *TABLE_COLUMNS, "compute_hours", "device", "params_m", "gmacs")


def _figures(result: StudyResult, trial: TrialRecord) -> dict[str, Any]:
    cost = result.costs[trial.number]
    values = {
        "search": result.name,
        "metric": result.metric,
        **trial.row(),
        "best_epoch": trial.best_epoch or None,
        "compute_hours": result.compute_hours(trial),
        "device": devices_of(trial) or None,
        "params_m": cost.params_m,
        "gmacs": cost.gmacs,
    }
    finite: dict[str, Any] = _finite(values)
    return finite


def _search(result: StudyResult) -> dict[str, Any]:
    saved, found, trained = savings(result), timeline(result), throughput(result)
    use = gpu_use(result)
    return {
        "search": result.name,
        "state": result.state.value,
        "failure": result.failure,
        "metric": result.metric,
        "at": result.space.metric.at,
        "mode": "max" if result.maximize else "min",
        "folder": str(result.folder),
        "url": result.url,
        "tracking_uri": result.tracking_uri,
        "total": result.space.budget.trials,
        "foreign": list(result.foreign),
        "device": result.device,
        "compute_hours": saved.hours,
        "compute_hours_by_device": device_hours(result),
        "epochs": saved.epochs,
        "epochs_saved": saved.epochs_saved,
        "compute_hours_saved": saved.hours_saved,
        "slots": found.slots,
        "utilisation": found.utilisation,
        "gpu_utilisation": use.utilisation if use else None,
        "gpu_time_shares": dict(use.shares) if use else None,
        "images_per_second_and_device": trained.per_device if trained else None,
        "rungs": [
            {"epoch": rung.epoch, "reached": rung.reached, "went_on": rung.continued, "stopped": rung.stopped}
            for rung in rung_survival(result)
        ],
        "scheduling": list(result.scheduling),
        "best": None if result.best is None else _trial(result, result.best),
        "best_command": best_command(result),
        "in_hand": None if result.in_hand is None else _trial(result, result.in_hand),
        "space_history": list(result.space_history),
        "images": {name: account.to_json() for name, account in result.accounts.items()},
        "front": [trial.number for trial in result.front],
        "failures": [
            {"state": one.state.value, "cause": one.cause, "trials": list(one.numbers)}
            for one in failures(result)
        ],
        "trials": [_trial(result, trial) for trial in result.trials],
    }


def _trial(result: StudyResult, trial: TrialRecord) -> dict[str, Any]:
    return {
        **{n: value for n, value in _figures(result, trial).items() if n not in ("search", "metric")},
        "parameters": dict(trial.parameters),
        "config": dict(trial.origin.config) if trial.origin else None,
        "space_version": trial.origin.space if trial.origin else None,
        "value_epoch": trial.value_epoch or None,
        "values": list(trial.values),
        "checkpoint": result.kept_checkpoint(trial),
        "mlflow_run_id": trial.mlflow_run_id,
        "error": trial.error,
        "notes": list(trial.notes),
    }


def _finite(value: Any) -> Any:
    """Replace every number that is not finite by None, because JSON has only null for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def markdown_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    heads = [name.replace("_", " ") for name in names]
    body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in rows]
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *body]


#: Maximum number of characters of a note: MLflow limits a tag to 8,000 bytes.
LONGEST: Final = 5000


def note_text(result: StudyResult) -> str:
    """Return the best five trials, the rungs, the cost, and the commands that report and resume."""
    return "\n\n".join(_paragraphs(result))[:LONGEST]


def _paragraphs(result: StudyResult) -> Iterator[str]:
    saved = savings(result)
    yield (
        f"**{result.state.value}**: {counted(len(result.trials), 'trial')}, {counted(saved.epochs, 'epoch')},"
        f" {format_device_hours(saved.hours, result.device)}; early stopping saved"
        f" {counted(saved.epochs_saved, 'epoch')} ({saved.share:.0%})."
    )
    if result.failure:
        yield result.failure
    if result.best is not None:
        best = result.best
        yield f"Best: {trial_name(best.number)}, {value_text(best)}: {pairs(best.parameters)}"
        in_hand = in_hand_message(result)
        if in_hand is not None:
            yield in_hand
        yield "\n".join(markdown_table(headings(result), (row(result, t) for t in ranked(result)[:BEST])))
    if result.space_history:
        yield "\n".join(["Changes of the space:\n", *(f"- {line}" for line in result.space_history)])
    rungs = (
        f"{rung.epoch}: {rung.reached} reached it, {rung.continued} continued"
        for rung in rung_survival(result)
    )
    yield f"Rungs by epoch: {'; '.join(rungs)}."
    if result.scheduling:
        yield "\n".join(["Scheduler:\n", *(f"- {line}" for line in result.scheduling)])
    storage = str(result.url or result.folder).rpartition("/")[0]
    where = shlex.join([result.name, "--storage", storage])
    yield f"Look closer: `python -m tune_rescon.report {where}`"
    if result.state is not SearchState.FINISHED:
        # Only final trainings are evaluated on the test images; `search` refuses to resume them.
        command = "train" if result.space.metric.of_test_images else "search"
        yield f"Resume it once no process runs it: `python -m tune_rescon.{command} --resume {where}`"
