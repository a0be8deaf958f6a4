"""A search as text: rows of trials and of compared searches, JSON, CSV, Markdown, and the note for MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import trial_name
from tune_rescon.csv_cells import csv_line
from tune_rescon.errors import counted, hide_passwords
from tune_rescon.reporting.formatting import (
    command_for,
    foreign_message,
    format_device_hours,
    format_hours,
    format_number,
    pairs,
    setting_text,
    value_text,
)
from tune_rescon.reporting.hours import device_hours, hours_unit, reserved_hours, savings, trial_hours
from tune_rescon.reporting.summary import best_command, devices_of, failures, rung_survival, winner_messages
from tune_rescon.reporting.timeline import gpu_use, throughput, timeline
from tune_rescon.tuning import SearchState, StudyResult, TrialRecord
from tune_rescon.tuning.input_digests import changed_digests
from tune_rescon.tuning.trial import TABLE_COLUMNS

if TYPE_CHECKING:
    # Its module imports SQLAlchemy, which only `report --list` needs.
    from tune_rescon.tuning import SearchOverview

__all__ = [
    "COMPARISON_HEADINGS",
    "comparison_row",
    "csv_text",
    "differences",
    "headings",
    "json_text",
    "markdown_table",
    "markdown_text",
    "mlflow_note",
    "overviews_json",
    "ranked",
    "row",
]

#: The mark of a trial on the Pareto front.
FRONT: Final = "*"


def headings(result: StudyResult) -> tuple[str, ...]:
    """Return the column names of :func:`row`. The sampled parameters are last.

    A search with two objectives has a column that marks the Pareto front. A search on several kinds of device
    has a column with their names.
    """
    return (
        "trial",
        "state",
        "epochs",
        result.metric,
        *(["front"] if result.against else []),
        "best",
        "params M",
        "GMACs",
        "hours",
        *(["device"] if _has_mixed_devices(result) else []),
        *_sampled(result),
    )


def ranked(result: StudyResult) -> list[TrialRecord]:
    """Return the trials, most epochs first, then best value."""
    return sorted(result.trials, key=TrialRecord.rank_key)


def row(result: StudyResult, trial: TrialRecord) -> tuple[str, ...]:
    """Return the cells of one trial as text, under :func:`headings`."""
    cost = result.costs[trial.number]
    return (
        str(trial.number),
        trial.state.value,
        str(trial.epochs),
        format_number(trial.value),
        *([FRONT if _is_on_front(result, trial) else ""] if result.against else []),
        format_number(trial.best_value),
        f"{cost.params_m:.2f}",
        f"{cost.gmacs:.3f}",
        " + ".join(f"{hours:.3f}" for hours in trial_hours(result, trial).values()),
        *([devices_of(trial) or "-"] if _has_mixed_devices(result) else []),
        *(setting_text(name, trial.setting(name)) for name in _sampled(result)),
    )


#: The column names of a comparison of searches.
COMPARISON_HEADINGS: Final = (
    *("search", "state", "trials", "best", "epochs", "params M", "GMACs"),
    *("epochs run", "saved", "hours", "in use"),
)


def comparison_row(result: StudyResult) -> tuple[str, ...]:
    """Return the cells of one search as text, under :data:`COMPARISON_HEADINGS`."""
    best, saved = result.best, savings(result)
    cost = result.costs[best.number] if best else None
    ended = sum(trial.state.is_final for trial in result.trials)
    return (
        result.name,
        result.state.value,
        f"{ended}/{max(result.space.budget.trials, len(result.trials))}",
        f"{result.metric} {format_number(best.value)}" if best else "-",
        str(best.epochs) if best else "-",
        f"{cost.params_m:.2f}" if cost else "-",
        f"{cost.gmacs:.3f}" if cost else "-",
        str(saved.epochs),
        f"{saved.share:.0%}",
        " + ".join(f"{hours:.3f}" for hours in reserved_hours(result).values()),
        f"{timeline(result).utilisation:.0%}",
    )


def differences(results: Sequence[StudyResult]) -> list[str]:
    """Return why values or hours of the first search cannot be compared with those of the others.

    Images and splits are compared by their content. Earlier versions did not record it. A search of such a
    version is assumed to have the same images if its dataset has the same name.

    Returns:
        A line for each other search with values of another meaning, and a line for each with hours of another
        unit.
    """
    first, *others = results
    lines = (line for other in others for line in (_difference(first, other), _other_hours(first, other)))
    return [line for line in lines if line is not None]


def _other_hours(first: StudyResult, other: StudyResult) -> str | None:
    first_unit, other_unit = map(hours_unit, (first, other))
    if first_unit == other_unit:
        return None
    units = f"The hours of {first.name} are {first_unit}, and those of {other.name} {other_unit}"
    return f"{units}: do not compare them"


def _difference(first: StudyResult, other: StudyResult) -> str | None:
    first_metric, other_metric = (_metric_words(result) for result in (first, other))
    if first_metric != other_metric:
        metrics = f"{first.name} was ranked by {first_metric} and {other.name} by {other_metric}"
        return f"{metrics}: do not compare their values"
    if first.maximize != other.maximize:
        better, worse = ("larger", "smaller") if first.maximize else ("smaller", "larger")
        return (
            f"{first.name} was ranked by {better} and {other.name} by {worse} values of {first.metric}: do"
            " not compare which is best"
        )
    if first.space.metric.at != other.space.metric.at and not first.space.metric.of_test_images:
        return (
            f"{first.name} counts {first.metric} at the {first.space.metric.at} epoch and {other.name} at the"
            f" {other.space.metric.at}: do not compare their values"
        )
    function = first.space.metric.function
    if function in changed_digests(first.code, other.code):
        return f"{first.name} and {other.name} had different code of {function}: do not compare their values"
    first_names, other_names = _datasets(first), _datasets(other)
    are_recorded = first.images and other.images
    has_changed = any(first.images.get(name) != other.images.get(name) for name in first_names)
    if first_names == other_names and not (are_recorded and has_changed):
        return None
    names = f" ({', '.join(first_names)} and {', '.join(other_names)})" if first_names != other_names else ""
    return f"{other.name} was evaluated on other images than {first.name}{names}: do not compare their values"


def _datasets(result: StudyResult) -> list[str]:
    """Return the names of the datasets on which the trials of a search were evaluated, in order."""
    default = result.space.dataset.name
    return sorted({trial.setting("dataset") or default for trial in result.trials} or {default})


def _metric_words(result: StudyResult) -> str:
    """Return the metric of a search, with the user's function if one computes it."""
    function = result.space.metric.function
    return result.metric if function is None else f"{result.metric} ({function})"


def _is_on_front(result: StudyResult, trial: TrialRecord) -> bool:
    return any(trial.number == other.number for other in result.front)


def _has_mixed_devices(result: StudyResult) -> bool:
    return len({kind for trial in result.trials for kind in trial.devices}) > 1


def _sampled(result: StudyResult) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for trial in result.trials for name in trial.parameters))


#: Number of trials in the Markdown summary and in the note.
TOP: Final = 5


def json_text(result: StudyResult, compared: Sequence[StudyResult] = ()) -> str:
    """Return one JSON document: the search, and the other searches under ``compared``.

    A number that is not finite is null.
    """
    document = {
        **_search_document(result),
        "compared": [_search_document(other) for other in compared],
        "differences": differences([result, *compared]),
    }
    return json.dumps(_presentable(document), indent=2, allow_nan=False)


def csv_text(results: Sequence[StudyResult]) -> str:
    """Return a row for each trial of all searches; the first column is the search.

    The last columns are the parameters of all searches. The cell of a missing value is empty.
    """
    names = list(dict.fromkeys(name for result in results for t in result.trials for name in t.parameters))
    lines = [csv_line([*_FIGURES, *names])]
    for result in results:
        for trial in result.trials:
            figures = _figures(result, trial)
            settings = map(trial.setting, names)
            cells = (hide_passwords(value) if isinstance(value, str) else value for value in settings)
            lines.append(csv_line([*map(figures.get, _FIGURES), *cells]))
    return "".join(lines)


def markdown_text(result: StudyResult, compared: Sequence[StudyResult] = ()) -> str:
    """Return a Markdown summary: the state, the best trials, and the comparison with other searches."""
    return "\n\n".join(_summary_blocks(result, compared)) + "\n"


def _summary_blocks(result: StudyResult, compared: Sequence[StudyResult]) -> Iterator[str]:
    saved = savings(result)
    yield f"# {result.name}"
    yield (
        f"{counted(len(result.trials), 'trial')}, {result.state.value}; {counted(saved.epochs, 'epoch')} in"
        f" {format_device_hours(reserved_hours(result))},"
        f" {counted(saved.epochs_saved, 'epoch')} ({saved.share:.0%}) saved by early stopping."
    )
    if len(spent := device_hours(result)) > 1:
        texts = {kind: format_hours(hours) for kind, hours in spent.items()}
        parts = (f"{hours} hour{'' if hours == '1' else 's'} on {kind}" for kind, hours in texts.items())
        yield f"By kind of device: {', '.join(parts)}."
    if result.failure:
        yield result.failure
    if result.foreign:
        yield foreign_message(result.foreign)
    if (best := result.best) is not None:
        yield f"Best: trial {best.number}, {value_text(best)}: {pairs(best.parameters)}"
    yield from winner_messages(result)
    yield _best_trials(result)
    if compared:
        yield "## Compared"
        rows = (comparison_row(each) for each in (result, *compared))
        yield "\n".join(markdown_table(COMPARISON_HEADINGS, rows))
        yield from differences([result, *compared])
    images = [f"{name}: {line}" for name, account in result.accounts.items() for line in account.lines()]
    sections = {
        "Scheduler": result.scheduling,
        "Changes since the start": result.space_history,
        "Images": images,
    }
    for heading, lines in sections.items():
        if lines:
            yield f"## {heading}"
            yield _bullets(lines)
    if command := best_command(result):
        yield f"```\n{command}\n```"


def _best_trials(result: StudyResult) -> str:
    rows = (row(result, trial) for trial in ranked(result)[:TOP])
    return "\n".join(markdown_table(headings(result), rows))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def overviews_json(overviews: Sequence[SearchOverview]) -> str:
    """Return a JSON list of searches."""
    rows = [
        {
            "name": overview.name,
            "state": overview.state.value if overview.state else None,
            "metric": overview.metric,
            "best": overview.best,
            "ended": overview.ended,
            "total": overview.total,
            "changed": overview.changed.isoformat(timespec="seconds") if overview.changed else None,
            "problem": overview.problem or None,
        }
        for overview in overviews
    ]
    return json.dumps(_presentable(rows), indent=2, allow_nan=False)


_FIGURES: Final = ("search", "metric", *TABLE_COLUMNS, "compute_hours", "device", "params_m", "gmacs")


def _figures(result: StudyResult, trial: TrialRecord) -> dict[str, Any]:
    cost = result.costs[trial.number]
    values = {
        "search": result.name,
        "metric": result.metric,
        **trial.row(),
        "best_epoch": trial.best_epoch or None,
        # Core-hours and GPU-hours are not added.
        "compute_hours": result.compute_hours(trial) if len(trial_hours(result, trial)) == 1 else None,
        "device": devices_of(trial) or None,
        "params_m": cost.params_m,
        "gmacs": cost.gmacs,
    }
    finite: dict[str, Any] = _presentable(values)
    return finite


def _search_document(result: StudyResult) -> dict[str, Any]:
    saved, slots, speed = savings(result), timeline(result), throughput(result)
    use, has_moved = gpu_use(result), len(reserved_hours(result)) > 1
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
        # Core-hours and GPU-hours are not added. The next line has them.
        "compute_hours": None if has_moved else saved.hours,
        "compute_hours_by_device": device_hours(result),
        "epochs": saved.epochs,
        "epochs_saved": saved.epochs_saved,
        "compute_hours_saved": None if has_moved else math.fsum(saved.hours_saved.values()),
        "slots": slots.slots,
        "utilisation": slots.utilisation,
        "gpu_utilisation": use.utilisation if use else None,
        "gpu_time_shares": dict(use.shares) if use else None,
        "images_per_second_and_device": speed.per_device if speed else None,
        "rungs": [
            {"epoch": rung.epoch, "reached": rung.reached, "went_on": rung.continued, "stopped": rung.stopped}
            for rung in rung_survival(result)
        ],
        "scheduling": list(result.scheduling),
        "best": None if result.best is None else _trial_document(result, result.best),
        "best_command": best_command(result),
        "in_hand": None if result.in_hand is None else _trial_document(result, result.in_hand),
        "space_history": list(result.space_history),
        "images": {name: account.to_json() for name, account in result.accounts.items()},
        "front": [trial.number for trial in result.front],
        "failures": [
            {"state": failure.state.value, "cause": failure.cause, "trials": list(failure.numbers)}
            for failure in failures(result)
        ],
        "trials": [_trial_document(result, trial) for trial in result.trials],
    }


def _trial_document(result: StudyResult, trial: TrialRecord) -> dict[str, Any]:
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


def _presentable(value: Any) -> Any:
    """Return a value for JSON: None (null) for a number that is not finite, and no passwords in URLs."""
    if isinstance(value, str):
        return hide_passwords(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {hide_passwords(str(key)): _presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_presentable(item) for item in value]
    return value


def markdown_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = [name.replace("_", " ") for name in names]
    return [_markdown_row(head), f"|{' --- |' * len(head)}", *map(_markdown_row, rows)]


def _markdown_row(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


#: Maximum number of characters of a note: MLflow limits a tag to 8,000 bytes.
MAX_NOTE: Final = 5000


def mlflow_note(result: StudyResult) -> str:
    """Return a Markdown note: the best trials, the rungs, the cost, and the commands to report and resume."""
    note = "\n\n".join(_note_blocks(result))
    return note if len(note) <= MAX_NOTE else f"{note[: MAX_NOTE - 1]}…"


def _note_blocks(result: StudyResult) -> Iterator[str]:
    saved = savings(result)
    yield (
        f"**{result.state.value}**: {counted(len(result.trials), 'trial')}, {counted(saved.epochs, 'epoch')},"
        f" {format_device_hours(reserved_hours(result))}; early stopping saved"
        f" {counted(saved.epochs_saved, 'epoch')} ({saved.share:.0%})."
    )
    if result.failure:
        yield result.failure
    if (best := result.best) is not None:
        yield f"Best: {trial_name(best.number)}, {value_text(best)}: {pairs(best.parameters)}"
        yield from winner_messages(result)
        yield _best_trials(result)
    rungs = (
        f"{rung.epoch}: {rung.reached} reached it, {rung.continued} continued"
        for rung in rung_survival(result)
    )
    yield f"Rungs by epoch: {'; '.join(rungs)}."
    if result.scheduling:
        yield f"Scheduler:\n\n{_bullets(result.scheduling)}"
    yield f"Look closer: `{command_for(result, 'report', result.name)}`"
    if result.state is not SearchState.FINISHED:
        # Final trainings, which are evaluated on the test images, are resumed by the command that began them.
        command = "train" if result.space.metric.of_test_images else "search"
        resume = command_for(result, command, "--resume", result.name)
        yield f"Resume it once no process runs it: `{resume}`"
    if result.space_history:
        # Last, because it grows with each resume and a long note is cut.
        yield f"Changes since the start:\n\n{_bullets(result.space_history)}"
