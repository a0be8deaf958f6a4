"""The result of a search, and the contents of its ``best.yaml``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialState, trial_name
from tune_rescon.data import Account
from tune_rescon.errors import counted, hide_passwords
from tune_rescon.spaces import Space
from tune_rescon.tuning.cost_model import CostModel, TrialCost, compute_hours
from tune_rescon.tuning.stopping.auto_messages import rungs_and_reasons
from tune_rescon.tuning.trial import TABLE_COLUMNS, TrialRecord, best_by_value, usable_trials

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SearchState",
    "StudyResult",
    "best_file",
    "best_in_hand",
    "best_trial",
    "build_result",
    "missing_winner",
    "pareto_front",
    "repeated",
    "spent_message",
]


class SearchState(StrEnum):
    """The state of a search."""

    RUNNING = "running"
    """A driver is alive."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """The driver was interrupted or has died; ``--resume`` continues the search."""
    FAILED = "failed"


#: The columns of :meth:`StudyResult.dataframe` before the parameters.
_COLUMNS: Final = (*TABLE_COLUMNS, "compute_hours", "params_m", "gmacs", "checkpoint")


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyResult:
    """The state and the results of a search, when its command ends or while it runs."""

    name: str
    space: Space
    folder: Path
    metric: str
    maximize: bool
    trials: tuple[TrialRecord, ...]
    costs: Mapping[int, TrialCost]
    devices_per_trial: float
    """Number of GPUs of a trial, or of CPU cores if it has no GPU."""
    device: str
    """The device that :attr:`devices_per_trial` counts: ``"GPU"``, ``"CPU"``, or a kind of GPU."""
    rungs: tuple[int, ...]
    """The rungs, in epochs. With the scheduler ``auto``, those that the values have led to so far."""
    best: TrialRecord | None
    best_config: Mapping[str, Any]
    state: SearchState
    tracking_uri: str
    pending_updates: int = 0
    """Number of updates that MLflow did not accept, or not in time."""
    pending_reason: str = ""
    """The error of the last of these updates; empty if the time was too short."""
    foreign: tuple[int, ...] = ()
    """Numbers of the study's trials that another program created; :attr:`trials` does not contain them."""
    against: str | None = None
    """The second objective, which is minimized: ``"gmacs"`` or ``"compute_hours"``; None without one."""
    url: str | None = None
    """The URL of ``folder`` for other machines; None if ``folder`` is a directory of the storage itself."""
    study_url: str | None = None
    """The URL of the shared database that has the study, with its password; None if the study is a file of
    the search."""
    pending_uploads: int = 0
    """Number of changes that are missing at :attr:`url`."""
    has_outcome: bool = True
    """Whether the last run recorded how it ended. False while it runs, and after its driver was killed."""
    failure: str | None = None
    """Why the search ended early, and what its failed trials have in common; None if it did not end early."""
    space_history: tuple[str, ...] = ()
    """The changes that resumes made to the space, and those of the user's code, one line for each."""
    scheduling: tuple[str, ...] = ()
    """Sentences about what the scheduler ``auto`` has decided; empty for other schedulers."""
    accounts: Mapping[str, Account] = field(default_factory=dict)
    """For each folder or zip of images, by the dataset's name: the images found, and the entries left out."""
    images: Mapping[str, str] = field(default_factory=dict)
    """The digest of the images and splits of each dataset, by its name; empty if the record has none."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """The digest of each file of initial weights, by its path or URL; empty if the record has none."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The digest of the file of each of the user's functions, by ``module:function``."""

    def __repr__(self) -> str:
        """Return the search's name, its state and its winner, on one line."""
        best = "no best trial yet"
        if self.best is not None:
            best = (
                f"best {trial_name(self.best.number)}, {self.metric} {self.best.value:.4g}"
                f" after {counted(self.best.epochs, 'epoch')}"
            )
        return f"<StudyResult {self.name}: {self.state.value}, {counted(len(self.trials), 'trial')}, {best}>"

    def dataframe(self) -> pd.DataFrame:
        """Return a pandas DataFrame with one row for each trial, and the searched parameters last.

        The index is the trial's number. A parameter that a trial does not have is missing in its row.
        """
        # Imported here, because pandas takes long to import.
        import pandas as pd

        names = dict.fromkeys(name for trial in self.trials for name in trial.parameters)
        rows = [
            {
                **trial.row(),
                # Core-hours and GPU-hours are not added.
                "compute_hours": self.compute_hours(trial) if len(self._on_cores(trial)) == 1 else math.nan,
                "params_m": self.costs[trial.number].params_m,
                "gmacs": self.costs[trial.number].gmacs,
                "checkpoint": self.checkpoint(trial),
                **{name: trial.setting(name) for name in names},
            }
            for trial in self.trials
        ]
        return pd.DataFrame(rows, columns=[*_COLUMNS, *names]).set_index("trial")

    @property
    def interrupted(self) -> bool:
        """True if the search ended early."""
        return self.state is SearchState.INTERRUPTED

    def checkpoint(self, trial: TrialRecord) -> str | None:
        """Return the path or URL of the checkpoint of a trial's best network; None if none is recorded."""
        if trial.checkpoint is None:
            return None
        return f"{self.url}/{trial.checkpoint}" if self.url else str(self.folder / trial.checkpoint)

    def kept_checkpoint(self, trial: TrialRecord) -> str | None:
        """Return :meth:`checkpoint`, or None if that file is missing. Files at a URL are not checked."""
        file = self.checkpoint(trial)
        return file if file is None or self.url or Path(file).is_file() else None

    def compute_hours(self, trial: TrialRecord) -> float:
        """Return the device-hours of one trial; see :func:`compute_hours`."""
        return compute_hours(trial, self.devices_per_trial)

    def cost(self, trial: TrialRecord) -> float:
        """Return a trial's second objective, or its GMACs if the search has no second objective."""
        if self.against == "compute_hours":
            return self.compute_hours(trial)
        return self.costs[trial.number].gmacs

    @cached_property
    def in_hand(self) -> TrialRecord | None:
        """The unfinished trial that is already better than the winner: see :func:`best_in_hand`.

        None if there is no such trial, or the metric is measured on the test images.
        """
        return None if self.space.metric.of_test_images else best_in_hand(self.trials, self.best)

    @cached_property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front, the cheapest trial first; empty if the search has no second objective.

        The front contains only trials with as many epochs as the winner: a trial that was stopped early is
        never compared as if it had finished. Nor is a trial that failed, which keeps no network. By
        ``compute_hours``, it contains only trials that ran on the winner's kind of device, cores or GPUs.
        """
        if self.against is None or self.best is None:
            return ()
        usable = usable_trials(self.trials)
        peers = {trial.number: trial for trial in usable if trial.epochs == self.best.epochs}
        if self.against == "compute_hours":
            # Core-hours and GPU-hours can be neither compared nor added.
            of_best = self._on_cores(self.best)
            peers = {n: t for n, t in peers.items() if len(of_best) == 1 and self._on_cores(t) == of_best}
        sign = 1 if self.maximize else -1
        points = {number: (sign * trial.value, self.cost(trial)) for number, trial in peers.items()}
        return tuple(peers[number] for number in pareto_front(points))

    def _on_cores(self, trial: TrialRecord) -> set[bool]:
        """Return whether a trial ran on CPU cores; both values if a resume moved it to or from GPUs."""
        return {(kind or self.device) == "CPU" for kind in trial.devices or (None,)}


def pareto_front(points: Mapping[int, tuple[float, float]]) -> tuple[int, ...]:
    """Return the keys of the points that no other point dominates, in ascending order of the second value.

    A point dominates another if its first value is no smaller, its second value is no larger, and at least
    one of the two is better. Equal points are therefore on the front together. A point that is not finite is
    never on the front.

    >>> pareto_front({0: (0.9, 2.0), 1: (0.8, 1.0), 2: (0.7, 1.5), 3: (0.95, 4.0)})
    (1, 0, 3)
    """
    finite = {key: point for key, point in points.items() if all(map(math.isfinite, point))}
    front: list[int] = []
    for key, (value, cost) in sorted(finite.items(), key=lambda item: (item[1][1], -item[1][0])):
        # Every earlier point is as cheap or cheaper, so this one is on the front only if its value is better
        # or the points are equal.
        if not front or value > finite[front[-1]][0] or (value, cost) == finite[front[-1]]:
            front.append(key)
    return tuple(front)


def best_trial(trials: tuple[TrialRecord, ...], *, by_mean: bool = False) -> TrialRecord | None:
    """Return the winner: the trial with the best value among the trials that reached the last epoch.

    A trial that was stopped early is never compared as if it had finished. If no trial has finished, the
    winner is the best of the trials with the most epochs (Optuna's order of pruned trials). A trial that
    failed keeps no network, so it is the winner only if all trials failed.

    With ``by_mean``, the winner is the first trial of the parameters whose finished trials have the best mean
    value. Among trials that differ only in their seed, the best one is merely the luckiest.
    """
    if by_mean and (groups := repeated(trials)):
        best = max if groups[0][0].maximize else min
        return best(groups, key=lambda group: statistics.fmean(trial.value for trial in group))[0]
    usable = usable_trials(trials)
    finished = [trial for trial in usable if trial.state is TrialState.FINISHED]
    return min(finished or usable, key=TrialRecord.rank_key, default=None)


def best_in_hand(trials: Iterable[TrialRecord], winner: TrialRecord | None) -> TrialRecord | None:
    """Return the trial with the best value so far, if it is better than the winner (:func:`best_trial`).

    The winner is chosen among the trials that reached the last epoch. If the search ended early, a trial that
    was paused, stopped or interrupted before the last epoch may have a better value. Trials that diverged or
    failed do not count.
    """
    best = best_by_value(trials)
    if best is None or winner is None:
        return None
    # The margin is nan if the winner has no finite value; every other value is better then.
    margin = best.value - winner.value if best.maximize else winner.value - best.value
    return None if margin <= 0 else best


def repeated(trials: Iterable[TrialRecord]) -> list[tuple[TrialRecord, ...]]:
    """Group the finished trials by their configuration; groups and trials keep the order of ``trials``.

    Trials with the same parameters may differ in a field that a resume has fixed to another value. A trial
    whose configuration is not recorded counts by its parameters.
    """
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.state is TrialState.FINISHED and math.isfinite(trial.value):
            values = trial.parameters if trial.origin is None else trial.origin.config
            groups.setdefault(repr(sorted(values.items())), []).append(trial)
    return [tuple(group) for group in groups.values()]


def missing_winner(result: StudyResult) -> str | None:
    """Return a message if the winner's recorded checkpoint is missing from the folder; None otherwise."""
    best = result.best
    if best is None or best.checkpoint is None or result.kept_checkpoint(best) is not None:
        return None
    return (
        f"The network of {trial_name(best.number)} cannot be used or registered:"
        f" {result.checkpoint(best)} is missing. Copy it there from where the search ran."
    )


def spent_message(
    result: StudyResult, elapsed_seconds: float, *, space_is_exhausted: bool = False
) -> str | None:
    """Return a message about what ended the search before all trials of the budget began; None otherwise.

    Args:
        result: The result of a search that ended by itself.
        elapsed_seconds: The time of all runs of the search.
        space_is_exhausted: Whether every point of the space has run; hours or epochs would add no trial then.
    """
    budget, name, trials = result.space.budget, result.name, len(result.trials)
    if space_is_exhausted:
        return (
            f"The space is exhausted: all of its configurations have run, in {trials} of"
            f" {counted(budget.trials, 'trial')}."
            " To run them again with other training seeds: --set sampler.repeats=true."
        )
    if trials >= budget.trials:
        return None
    begun = f"with {trials} of {counted(budget.trials, 'trial')} begun"
    if budget.hours is not None and elapsed_seconds >= budget.hours * 3600:
        # The last epochs may have ended long after the deadline.
        used = math.ceil(elapsed_seconds / 36) / 100
        # Final trainings are resumed by `train`, which has no --hours.
        option = "--set budget.hours=H" if result.space.metric.of_test_images else "--hours H"
        return (
            f"{name} has used its {counted(budget.hours, 'hour')}, {begun}."
            f" More time: --resume {name} {option}, with H over {used:g}."
        )
    if budget.epochs is None:
        return None
    epochs = sum(trial.epochs for trial in result.trials)
    return (
        f"{name} has run {epochs} of its {counted(budget.epochs, 'epoch')}, {begun}."
        f" More: --resume {name} --set budget.epochs=E."
    )


def best_file(result: StudyResult) -> dict[str, Any]:
    """Return the contents of ``best.yaml`` as plain values.

    They are the winner, a better trial that has not finished if there is one, and the Pareto front if any.
    """
    best = result.best
    assert best is not None, "written only where there is a best trial"
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in result.best_config.items()}
    return {
        "search": result.name,
        "trial": best.number,
        "state": best.state.value,
        "metric": result.metric,
        "at": best.at,
        **_values(best),
        "parameters": dict(best.parameters),
        "config": config,
        **_in_hand(result),
        **_front(result),
    }


def _values(trial: TrialRecord) -> dict[str, Any]:
    return {
        "value": trial.value,
        "value_epoch": trial.value_epoch,
        "epochs": trial.epochs,
        "best_value": trial.best_value,
        "best_epoch": trial.best_epoch,
        "checkpoint": trial.checkpoint,
    }


def _in_hand(result: StudyResult) -> dict[str, Any]:
    trial = result.in_hand
    if trial is None:
        return {}
    return {"in_hand": {"trial": trial.number, "state": trial.state.value, **_values(trial)}}


def _front(result: StudyResult) -> dict[str, Any]:
    if result.against is None:
        return {}
    rows = [
        {"trial": trial.number, "value": trial.value, result.against: result.cost(trial)}
        for trial in result.front
    ]
    return {"against": result.against, "front": rows}


def build_result(
    costs: CostModel,
    trials: tuple[TrialRecord, ...],
    *,
    name: str,
    folder: Path,
    state: SearchState,
    tracking_uri: str,
    url: str | None = None,
    slots: int = 1,
) -> StudyResult:
    """Return the result of a search, without what :func:`.with_record` adds.

    Args:
        costs: The space and the cost model of its networks.
        trials: All trials in the record, ordered by number.
        name: The search's name.
        folder: The search's folder on this machine.
        state: The state of the search.
        tracking_uri: MLflow's tracking URI; a password in it is hidden.
        url: The folder's URL if the storage is a URL; a password in it is hidden.
        slots: Number of trials that run at once, as the scheduler planned.
    """
    space = costs.space
    best = best_trial(trials, by_mean=space.metric.of_test_images)
    config = best.config(space) if best else None
    rungs, scheduling = rungs_and_reasons(space, trials, slots=slots)
    return StudyResult(
        name=name,
        space=space,
        folder=folder,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        trials=trials,
        costs={trial.number: costs.cost(trial) for trial in trials},
        devices_per_trial=space.resources_per_trial.devices,
        device=space.resources_per_trial.device,
        rungs=rungs,
        scheduling=scheduling,
        best=best,
        best_config=config.to_dict() if config else {},
        state=state,
        tracking_uri=hide_passwords(tracking_uri),
        url=None if url is None else hide_passwords(url),
        against=space.metric.against,
        accounts={name: info.account for name, info in costs.datasets.items() if info.account},
    )
