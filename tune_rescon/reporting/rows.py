"""The rows that all forms of the report share: one for each trial, best first, or one for each search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tune_rescon.reporting.analysis import devices_of, savings, timeline
from tune_rescon.reporting.formatting import format_number, setting_text
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = ["comparison_headings", "comparison_row", "differences", "headings", "ranked", "row"]

#: The mark of a trial on the Pareto front.
FRONT: Final = "*"


def headings(result: StudyResult) -> tuple[str, ...]:
    """Return the column names; the sampled parameters come last.

    If the search has two objectives, a column marks the Pareto front. If its trials ran on several kinds of
    device, a column names them.
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
        *(["device"] if _is_mixed(result) else []),
        *_sampled(result),
    )


def ranked(result: StudyResult) -> list[TrialRecord]:
    """Return the trials, those with the most epochs first, and by value among those with equally many."""
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
        f"{result.compute_hours(trial):.3f}",
        *([devices_of(trial) or "-"] if _is_mixed(result) else []),
        *(setting_text(name, trial.setting(name)) for name in _sampled(result)),
    )


def comparison_headings() -> tuple[str, ...]:
    """Return the column names of a comparison of searches."""
    return (
        "search",
        "state",
        "trials",
        "best",
        "epochs",
        "params M",
        "GMACs",
        "epochs run",
        "saved",
        "hours",
        "in use",
    )


def comparison_row(result: StudyResult) -> tuple[str, ...]:
    """Return the cells of one search as text, under :func:`comparison_headings`."""
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
        f"{saved.hours:.3f}",
        f"{timeline(result).utilisation:.0%}",
    )


def differences(results: Sequence[StudyResult]) -> list[str]:
    """Return why values of the first search cannot be compared with those of others, a line for each.

    Images and splits are compared by their content. A search of an earlier version, whose record does not
    identify its images, counts as one of the same images if its dataset has the same name.
    """
    first, *others = results
    return [line for other in others if (line := _difference(first, other)) is not None]


def _difference(first: StudyResult, other: StudyResult) -> str | None:
    ranked_by, other_by = (_metric_words(result) for result in (first, other))
    if ranked_by != other_by:
        return (
            f"{first.name} was ranked by {ranked_by} and {other.name} by {other_by}: do not compare their"
            " values"
        )
    if first.space.metric.at != other.space.metric.at and not first.space.metric.of_test_images:
        return (
            f"{first.name} counts {first.metric} at the {first.space.metric.at} epoch and {other.name} at the"
            f" {other.space.metric.at}: do not compare their values"
        )
    mine, theirs = first.space.dataset.name, other.space.dataset.name
    same = first.images.get(mine) == other.images.get(mine) or not (first.images and other.images)
    if mine == theirs and same:
        return None
    names = f" ({mine} and {theirs})" if mine != theirs else ""
    return f"{other.name} was evaluated on other images than {first.name}{names}: do not compare their values"


def _metric_words(result: StudyResult) -> str:
    """Return the metric of a search, with the user's function if one computes it."""
    function = result.space.metric.function
    return result.metric if function is None else f"{result.metric} ({function})"


def _is_on_front(result: StudyResult, trial: TrialRecord) -> bool:
    return any(trial.number == other.number for other in result.front)


def _is_mixed(result: StudyResult) -> bool:
    return len({kind for trial in result.trials for kind in trial.devices}) > 1


def _sampled(result: StudyResult) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for trial in result.trials for name in trial.parameters))
