"""What a search returns, and what its ``best.yaml`` says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tune_rescon.config import DatasetConfig, TrialState
from tune_rescon.data import Account, DatasetInfo
from tune_rescon.errors import presentable
from tune_rescon.models import NetworkSpec, count, resolve_network
from tune_rescon.passwords import hide_passwords
from tune_rescon.spaces import CategoricalParameter, Space
from tune_rescon.tuning.schedulers import rung_levels
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "CostModel",
    "SearchState",
    "StudyResult",
    "TrialCost",
    "best_file",
    "best_trial",
    "compute_hours",
    "datasets_of",
    "mean_value",
    "missing_winner",
    "pareto_front",
    "repeated",
    "sum_up",
]


class SearchState(StrEnum):
    """How a search stands."""

    RUNNING = "running"
    """A driver lives."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """Its driver was asked to end, or is gone; ``--resume`` goes on with it."""
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """What a trial's network costs, counted from its numbers."""

    params_m: float
    """Parameters, millions."""
    gmacs: float
    """Multiply-adds of one image's forward pass, billions."""


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A search as it stands: when the command ends, or when somebody looks."""

    name: str
    space: Space
    folder: Path
    metric: str
    maximize: bool
    trials: tuple[TrialRecord, ...]
    costs: Mapping[int, TrialCost]
    devices_per_trial: float
    """GPUs a trial held, or CPU cores where it held no GPU."""
    device: str
    """What that counts: ``"GPU"``, ``"CPU"``, or a kind of GPU."""
    levels: tuple[int, ...]
    """The rungs, epochs."""
    best: TrialRecord | None
    best_config: Mapping[str, Any]
    state: SearchState
    tracking_uri: str
    unsent: int = 0
    """Updates MLflow did not take, or not in time."""
    unsent_reason: str = ""
    """What the last of them failed with; empty: the time was too short."""
    foreign: tuple[int, ...] = ()
    """Numbers of the study's trials that another program made; they are no part of :attr:`trials`."""
    against: str | None = None
    """The second objective, made small: ``"gmacs"`` or ``"compute_hours"``; None: there is none."""
    url: str | None = None
    """Where ``folder`` is kept for other machines; None: it is a directory of the storage itself."""
    unkept: int = 0
    """Changes that are not there."""
    failure: str | None = None
    """Why the search ended before its time, and what the trials that failed share; None: it did not."""
    space_history: tuple[str, ...] = ()
    """What resumes have changed of the space, a line for each version after the first."""
    accounts: Mapping[str, Account] = field(default_factory=dict)
    """What was found and left out of each folder or zip of images, by the dataset's name."""

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended it before its time."""
        return self.state is SearchState.INTERRUPTED

    def checkpoint(self, trial: TrialRecord) -> str | None:
        """The path or URL of the file of a trial's best network; None if the record names none."""
        if trial.checkpoint is None:
            return None
        return f"{self.url}/{trial.checkpoint}" if self.url else str(self.folder / trial.checkpoint)

    def kept_checkpoint(self, trial: TrialRecord) -> str | None:
        """As :meth:`checkpoint`; None also if the file is not in the folder. A URL is believed."""
        place = self.checkpoint(trial)
        return place if place is None or self.url or Path(place).is_file() else None

    def compute_hours(self, trial: TrialRecord) -> float:
        """Device-hours of one trial: see :func:`compute_hours`."""
        return compute_hours(trial, self.devices_per_trial)

    def cost(self, trial: TrialRecord) -> float:
        """A trial's second objective; where the search has none, its GMACs."""
        if self.against == "compute_hours":
            return self.compute_hours(trial)
        return self.costs[trial.number].gmacs

    @cached_property
    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front of a search with a second objective, the cheapest first; else nothing.

        Only trials of as many epochs as the winner are on it: a trial that was stopped early is never
        compared as if it had finished.
        """
        if self.against is None or self.best is None:
            return ()
        peers = {trial.number: trial for trial in self.trials if trial.epochs == self.best.epochs}
        sign = 1 if self.maximize else -1
        points = {number: (sign * trial.value, self.cost(trial)) for number, trial in peers.items()}
        return tuple(peers[number] for number in pareto_front(points))


def pareto_front(points: Mapping[int, tuple[float, float]]) -> tuple[int, ...]:
    """Keys of the points that no other point dominates, those with the smallest second value first.

    A point dominates another if its first value is no smaller and its second no larger, and one of them is
    better. So equal points are on the front together. A point that is not finite is on no front.

    >>> pareto_front({0: (0.9, 2.0), 1: (0.8, 1.0), 2: (0.7, 1.5), 3: (0.95, 4.0)})
    (1, 0, 3)
    """
    finite = {key: point for key, point in points.items() if all(map(math.isfinite, point))}
    front: list[int] = []
    for key, (value, cost) in sorted(finite.items(), key=lambda item: (item[1][1], -item[1][0])):
        # Whatever came before is as cheap or cheaper, so only a better value, or the same point, adds to it.
        if not front or value > finite[front[-1]][0] or (value, cost) == finite[front[-1]]:
            front.append(key)
    return tuple(front)


def compute_hours(trial: TrialRecord, devices: float) -> float:
    """Hours of training times the GPUs (or, without any, CPU cores) the trial held."""
    return trial.seconds / 3600 * devices


def best_trial(trials: tuple[TrialRecord, ...], *, by_mean: bool = False) -> TrialRecord | None:
    """The winner: the best value among trials that reached the last epoch.

    An early-stopped trial is never compared as if it had finished. Only where none has finished is it the one
    that got furthest, and of those the best there (Optuna's order of pruned trials).

    ``by_mean``: the first trial of the parameters with the best mean over all of their trials that finished.
    Between trials that differ by their seed alone, the best is the luckiest.
    """
    if by_mean and (groups := repeated(trials)):
        return (max if groups[0][0].maximize else min)(groups, key=mean_value)[0]
    judged = [trial for trial in trials if trial.best_epoch]
    finished = [trial for trial in judged if trial.state is TrialState.FINISHED]
    return min(finished or judged, key=TrialRecord.rank_key, default=None)


def repeated(trials: Iterable[TrialRecord]) -> list[tuple[TrialRecord, ...]]:
    """Trials that finished, those of the same parameters together, in the order of their numbers."""
    groups: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        if trial.state is TrialState.FINISHED and math.isfinite(trial.value):
            groups.setdefault(repr(sorted(trial.parameters.items())), []).append(trial)
    return [tuple(group) for group in groups.values()]


def mean_value(trials: Sequence[TrialRecord]) -> float:
    """Mean of the values."""
    return math.fsum(trial.value for trial in trials) / len(trials)


def missing_winner(result: StudyResult) -> str | None:
    """What to say if the winner's recorded checkpoint is not in the folder; None if it is."""
    best = result.best
    if best is None or best.checkpoint is None or result.kept_checkpoint(best) is not None:
        return None
    return (
        f"The network of trial_{best.number:04d} cannot be used or registered:"
        f" {result.checkpoint(best)} is missing. Copy it there from where the search ran."
    )


def best_file(result: StudyResult) -> dict[str, Any]:
    """What ``best.yaml`` says of the winner, and of the Pareto front if there is one, in plain values."""
    best = result.best
    assert best is not None, "written only where there is a best trial"
    config = {name: list(v) if isinstance(v, tuple) else v for name, v in result.best_config.items()}
    return {
        "search": result.name,
        "trial": best.number,
        "state": best.state.value,
        "metric": result.metric,
        "at": best.at,
        "value": best.value,
        "value_epoch": best.value_epoch,
        "epochs": best.epochs,
        "best_value": best.best_value,
        "best_epoch": best.best_epoch,
        "checkpoint": best.checkpoint,
        "parameters": dict(best.parameters),
        "config": config,
        **_front(result),
    }


def _front(result: StudyResult) -> dict[str, Any]:
    if result.against is None:
        return {}
    rows = [
        {"trial": trial.number, "value": trial.value, result.against: result.cost(trial)}
        for trial in result.front
    ]
    return {"against": result.against, "front": rows}


_UNKNOWN = TrialCost(params_m=math.nan, gmacs=math.nan)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """What follows from a space and its datasets alone."""

    space: Space
    facts: Mapping[str, DatasetInfo]
    """By name, of every dataset a trial may train on; a reader of an old record may not know them all."""

    @property
    def devices(self) -> float:
        """What a trial holds: GPUs, or CPU cores where it holds no GPU."""
        return self.space.resources_per_trial.devices

    @property
    def device(self) -> str:
        """``"GPU"``, ``"CPU"``, or the kind of GPU that was asked for: what :attr:`devices` counts."""
        return self.space.resources_per_trial.device

    def cost(self, trial: TrialRecord) -> TrialCost:
        """Parameters and multiply-adds, counted, not built; nan where images or network are unknown."""
        config = trial.config(self.space)
        if config is None:
            return _UNKNOWN
        facts = self.facts.get(config.dataset or self.space.dataset.name)
        if facts is None:
            return _UNKNOWN
        return _counted(resolve_network(config, classes=facts.classes, in_channels=facts.channels))

    def second_objective(self, trial: TrialRecord, epochs: int) -> float:
        """What ``metric.against`` names, of a trial after its first ``epochs``."""
        if self.space.metric.against == "gmacs":
            return self.cost(trial).gmacs
        return trial.seconds_of(epochs) / 3600 * self.devices


@lru_cache(maxsize=1024)
def _counted(spec: NetworkSpec) -> TrialCost:
    # Most trials share their network with others, and an epoch's report may ask again.
    cost = count(spec)
    return TrialCost(params_m=cost.parameters / 1e6, gmacs=cost.macs / 1e9)


def datasets_of(space: Space) -> tuple[DatasetConfig, ...]:
    """Every dataset a trial of the space may train on."""
    searched = space.parameters.get("dataset")
    names = searched.choices if isinstance(searched, CategoricalParameter) else (None,)
    return tuple(space.dataset_config(name) for name in names)


def sum_up(
    pricing: CostModel,
    trials: tuple[TrialRecord, ...],
    *,
    name: str,
    folder: Path,
    state: SearchState,
    tracking_uri: str,
    url: str | None = None,
    failure: str | None = None,
    foreign: tuple[int, ...] = (),
    space_history: tuple[str, ...] = (),
) -> StudyResult:
    """The result of a search of ``pricing.space`` whose record holds ``trials``.

    Args:
        pricing: prices their networks.
        trials: all of them, by number.
        name: the search's.
        folder: where its files are on this machine.
        state: how it stands.
        tracking_uri: MLflow; a password in it is hidden.
        url: where the folder is kept, if the storage is a URL; a password in it is hidden.
        failure: why it ended before its time.
        foreign: numbers of the study's trials that another program made.
        space_history: what resumes have changed of the space, a line each.
    """
    space = pricing.space
    best = best_trial(trials, by_mean=space.metric.of_test_images)
    config = best.config(space) if best else None
    return StudyResult(
        name=name,
        space=space,
        folder=folder,
        metric=space.metric.name,
        maximize=space.metric.mode == "max",
        trials=trials,
        costs={trial.number: pricing.cost(trial) for trial in trials},
        devices_per_trial=pricing.devices,
        device=pricing.device,
        levels=rung_levels(space),
        best=best,
        best_config=config.to_dict() if config else {},
        state=state,
        tracking_uri=hide_passwords(tracking_uri),
        url=None if url is None else hide_passwords(url),
        against=space.metric.against,
        failure=None if failure is None else presentable(failure),
        foreign=foreign,
        space_history=space_history,
        accounts={name: facts.account for name, facts in pricing.facts.items() if facts.account},
    )
