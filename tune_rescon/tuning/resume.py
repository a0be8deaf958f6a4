"""Decide which parts of its space a resumed search may change. docs/howto/resume.md explains the rules.

The rules are one table, and the decision is a pure function. The existing trials of a search do not change:
each keeps the configuration that it ran with. A resume may change settings that only later trials and later
decisions depend on. A change is refused if it would change the meaning of recorded values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from tune_rescon.config import TrialConfig, TrialState, field_names, trial_name
from tune_rescon.errors import SpaceError, hide_passwords
from tune_rescon.spaces import AutoResources, Space, can_have, load_space, point_key
from tune_rescon.tuning.identity import check_not_copied, check_same_search
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import with_store_size
from tune_rescon.tuning.result import SearchState
from tune_rescon.tuning.space_versions import SpaceVersions, had_devices, read_versions
from tune_rescon.tuning.store import SearchStore
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.study_attributes import read_run_attributes, recorded_uri
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "FREE",
    "FROZEN",
    "change_problems",
    "check_changes",
    "cost_message",
    "is_finished",
    "resume_record",
    "space_changes",
    "tracking_message",
    "unfit_message",
    "version_changes",
    "waiting_message",
]


#: Sections, or keys of a section, that may always change.
FREE: Final = (
    "name",
    "description",
    "dataset.path",
    "metric.log",
    "fidelity.min",
    "sampler",
    "scheduler",
    "budget",
    "resources_per_trial",
    "constraints",
    "parameters",
    "initial",
)

#: Sections that may never change, and the reason for each. The keys in :data:`FREE` are exempt.
FROZEN: Final[Mapping[str, str]] = {
    "version": "it is the version of the file format",
    "dataset": "the trials were trained and validated on those images",
    "metric": "the trials were ranked by it, and kept the network that it chose",
    "fidelity": "the learning-rate schedules of the trials depend on it",
}


def change_problems(old: Space, new: Space, trials: Iterable[TrialRecord]) -> list[str]:
    """Return the refused changes from ``old`` to ``new``, one sentence for each.

    A key of ``fixed`` may change if no trial ran with another value. It may also change if it was searched
    before, because the earlier trials are then trials of other choices.

    Args:
        old: The newest version of the space in the record.
        new: The space to resume the search with.
        trials: All recorded trials.
    """
    trials = tuple(trials)
    return [
        *_frozen_problems(old, new),
        *_metric_problems(old, new),
        *_fixed_problems(old, new, trials),
        *_unknown_problems(trials),
    ]


def check_changes(
    name: str, old: Space, new: Space, trials: Iterable[TrialRecord], *, flag: str = "--resume"
) -> None:
    """Check that the search ``name`` can be resumed with ``new``.

    Args:
        name: The name of the search.
        old: The newest version of the space in the record.
        new: The space to resume the search with.
        trials: All recorded trials.
        flag: The flag that named the search, used in the message.

    Raises:
        SpaceError: If it cannot. The message lists every reason.
    """
    problems = change_problems(old, new, trials)
    if problems:
        raise SpaceError(
            f"{flag} {name}: the settings of its trials must not change, but {'; '.join(problems)}. Undo the"
            f" change, or begin a search of another --name with --warm-start {name}, which learns from the"
            " trials that it could have run itself. docs/howto/resume.md lists what may change."
        )


def space_changes(old: Space, new: Space) -> list[str]:
    """Return the differences between two versions of a space, one line for each key.

    A ``-`` marks a key that a version does not have.
    """
    # A parameter that only one of the versions has is one change, not one for each of its keys.
    unsplit = {f"parameters.{name}" for name in old.parameters.keys() ^ new.parameters.keys()}
    before, after = (dict(_leaves(space.model_dump(by_alias=True), unsplit)) for space in (old, new))
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {_shown(before.get(key, '-'))} -> {_shown(after.get(key, '-'))}"
        for key in keys
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
    ]


def version_changes(versions: SpaceVersions, trials: Iterable[TrialRecord]) -> tuple[str, ...]:
    """Return the changes that each resume made, one line for each version after the first.

    The result is empty if no resume changed the space.
    """
    first_trials: dict[int, int] = {}
    for trial in trials:
        if trial.origin is not None:
            first_trials.setdefault(trial.origin.space, trial.number)
    lines = []
    for number in range(2, versions.number + 1):
        old, new = versions.spaces[number - 2 : number]
        since = f"from trial {first_trials[number]}" if number in first_trials else "no trial yet"
        lines.append(f"version {number} ({since}): {'; '.join(space_changes(old, new))}")
    return tuple(lines)


_ABSENT: Final = object()

#: What a message calls the MLflow store without ``--tracking-uri``.
_OWN_STORE: Final = "the storage's own store"


def _frozen_problems(old: Space, new: Space) -> Iterator[str]:
    before, after = (dict(_leaves(space.model_dump(by_alias=True))) for space in (old, new))
    for key in dict.fromkeys([*before, *after]):
        section = key.partition(".")[0]
        if key in FREE or section not in FROZEN or before.get(key) == after.get(key):
            continue
        was, becomes = _shown(before.get(key)), _shown(after.get(key))
        yield f"{key} is {was} and would become {becomes} ({FROZEN[section]})"


def _metric_problems(old: Space, new: Space) -> Iterator[str]:
    """Yield the problem if another function than before would compute the metric of the same name."""
    was, becomes = old.metric.function, new.metric.function
    if old.metric.name == new.metric.name and was != becomes:
        yield (
            f"{old.metric.name} is computed by {was} and would be computed by {becomes} ({FROZEN['metric']})"
        )


def _fixed_problems(old: Space, new: Space, trials: tuple[TrialRecord, ...]) -> Iterator[str]:
    searched = {**old.parameters, **new.parameters}
    before, after = TrialConfig.from_dict(old.fixed), TrialConfig.from_dict(new.fixed)
    for name in field_names():
        value = getattr(after, name)
        if name in searched or getattr(before, name) == value:
            continue
        others = [t.number for t in trials if t.origin is not None and t.origin.config[name] != value]
        if others:
            yield (
                f"fixed.{name} would become {_shown(value)}, and {_numbered(others)} ran with"
                f" {_shown(getattr(before, name))} (to search it from now on, move it to `parameters`)"
            )


def _unknown_problems(trials: tuple[TrialRecord, ...]) -> Iterator[str]:
    lost = [trial.number for trial in trials if trial.origin is None and not trial.state.is_final]
    if lost:
        yield (
            f"space.yaml was edited and no longer contains {_numbered(lost)}, which an earlier version of"
            " this package began: undo the edit, resume once, and then change it with --set"
        )


def _leaves(value: Any, unsplit: Collection[str] = (), path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested sections. A list, or a key in ``unsplit``, is one value."""
    if isinstance(value, Mapping) and path not in unsplit:
        for key, inner in value.items():
            yield from _leaves(inner, unsplit, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _numbered(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    return f"{len(numbers)} trials (the first is trial {numbers[0]})"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shown(v)}' for key, v in value.items() if v is not None)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    # The URL of an archive may contain a signature.
    return "null" if value is None else hide_passwords(str(value))


def resume_record(space: Space, options: RunOptions, store: SearchStore) -> tuple[StudyRecord, SpaceVersions]:
    """Open the record of the search to resume.

    Args:
        space: The space to resume the search with.
        options: The options of this run.
        store: The storage of this run.

    Returns:
        The record, and the spaces that the search has had before ``space``.

    Raises:
        StorageError: If the study does not exist, belongs to another search or to the original of a copied
            folder, or the database cannot be used.
        SpaceError: If ``space`` would change the configuration that the recorded trials ran with.
    """
    folder, study_url = store.folder, options.study_of(store.folder)
    record = StudyRecord.load(study_url, options.name, metric=space.metric.name)
    if options.study_url is not None:
        check_same_search(record.attributes(), folder)
    check_not_copied(record.attributes(), folder, url=store.url, study_url=study_url)
    versions = read_versions(record, lambda: load_space(folder.space_yaml))
    check_changes(
        options.name,
        versions.newest,
        with_store_size(space, versions.newest),
        record.trials(),
        flag="--resume-or-start" if options.resume_or_start else "--resume",
    )
    return record, versions


def is_finished(
    record: StudyRecord, versions: SpaceVersions, space: Space, *, elapsed_seconds: float = 0.0
) -> bool:
    """Return whether a search has nothing left to do with ``space``.

    Its last run must have ended by itself: all trials have begun, the hours or epochs are spent, or the space
    is exhausted. In addition, the budget of ``space`` must have no further trial, or ``space`` must equal the
    space of that run except for settings that affect no decision. If hours and epochs are left, no enqueued
    trial may wait, and ``space`` must not have other GPUs for which a trial that ran out of memory may run
    again.

    Args:
        record: The record of the search.
        versions: The spaces that the search has had.
        space: The space to resume the search with.
        elapsed_seconds: Seconds of the budget that are used.
    """
    if read_run_attributes(record).outcome is not SearchState.FINISHED:
        return False
    trials = record.trials()
    if len(trials) >= space.budget.trials and all(trial.state.is_final for trial in trials):
        return True
    if _has_budget(record, space, elapsed_seconds) and (
        record.next_enqueued(lambda params: can_have(space, params)) is not None
        or _has_other_memory(versions.followed_by(space), trials)
    ):
        return False
    newest = versions.newest
    space = with_store_size(space, newest)
    budget = space.budget.model_copy(update={"concurrent": newest.budget.concurrent})
    # On another machine, `auto` may choose other resources.
    undecided = {key: getattr(newest, key) for key in ("name", "description", "resources_per_trial")}
    return space.model_copy(update={**undecided, "budget": budget}) == newest


def _has_budget(record: StudyRecord, space: Space, elapsed_seconds: float) -> bool:
    """Return whether hours and epochs are left, as in a search that ended with its space exhausted."""
    budget = space.budget
    if budget.hours is not None and elapsed_seconds >= budget.hours * 3600:
        return False
    return budget.epochs is None or sum(trial.epochs for trial in record.trials()) < budget.epochs


def _has_other_memory(versions: SpaceVersions, trials: Sequence[TrialRecord]) -> bool:
    """Return whether a point may run again because it ran out of memory only with other GPUs."""
    newest = versions.newest
    resources = newest.resources_per_trial
    if isinstance(resources, AutoResources) or resources.gpu == "auto":
        return False  # The GPUs are not chosen yet.
    same = had_devices(versions)
    forgotten = {t.number for t in trials if t.state is TrialState.OUT_OF_MEMORY and not same(t)}
    if not forgotten:
        return False
    # A resume may have changed the parameters too, so a trial's point in the newest space is what counts.
    points = {
        trial.number: point_key(newest.parameters, parameters)
        for trial in trials
        if (parameters := trial.parameters_in(newest, first=versions.spaces[0])) is not None
    }
    ran = {point for number, point in points.items() if number not in forgotten}
    return any(point not in ran for point in points.values())


def unfit_message(record: StudyRecord, space: Space) -> str | None:
    """Return a message that names the enqueued trials outside ``space``. Return None if all are in it."""
    unfit = [trial_name(trial.number) for trial in record.enqueued() if not can_have(space, trial.params)]
    if not unfit:
        return None
    names = ", ".join(unfit)
    return f"Enqueued trials that do not run, because the space does not contain their values: {names}"


def waiting_message(
    record: StudyRecord, space: Space, name: str, *, elapsed_seconds: float = 0.0
) -> str | None:
    """Return a message that names the enqueued trials that the search ``name`` has not run; None without any.

    Such a trial was enqueued after the search had asked for its last trial, or beyond the budget.

    Args:
        record: The record of the search.
        space: The space of its last run.
        name: The search's name.
        elapsed_seconds: Seconds of the budget that are used.
    """
    waiting = [trial_name(trial.number) for trial in record.enqueued() if can_have(space, trial.params)]
    if not waiting:
        return None
    total = len(record) + len(waiting)
    more = f" --trials {total}" if total > space.budget.trials else ""
    if not _has_budget(record, space, elapsed_seconds):
        more += ", with more hours or epochs"
    return f"Enqueued trials that have not run: {', '.join(waiting)}. To run them: --resume {name}{more}"


def tracking_message(record: StudyRecord, tracking_uri: str | None) -> str | None:
    """Return a message if this run is logged to another MLflow than the last one; None if it is not.

    Args:
        record: The record of the search, before this run.
        tracking_uri: MLflow's tracking URI of this run; None for the storage's own store.
    """
    before, now = read_run_attributes(record).tracking_uri, recorded_uri(tracking_uri)
    if before == now or not len(record):
        return None
    hint = "leave out --tracking-uri" if before is None else f"give --tracking-uri {before}"
    return (
        f"The last run was logged to MLflow at {before or _OWN_STORE}. This one is logged to"
        f" {now or _OWN_STORE}, with all trials of the search. To use the former one again, {hint}."
    )


def cost_message(versions: SpaceVersions) -> str | None:
    """Return a warning if hours of cores are compared with hours of GPUs; None if they are not."""
    spaces = versions.spaces
    kinds = {"core" if space.resources_per_trial.device == "CPU" else "GPU" for space in spaces}
    if versions.newest.metric.against != "compute_hours" or len(kinds) == 1:
        return None
    return (
        "The search has moved between cores and GPUs, and metric.against compares the core-hours of some"
        " trials with the GPU-hours of others. To compare costs, begin a search of another --name, or one"
        " with metric.against=gmacs."
    )
