"""Rivals on recorded curves: the real code of other libraries, and simple rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna

from contest.recorded import Table
from contest.rivals import OneEpochThenTopK, plain_ray
from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space, suggest
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter
from tune_rescon.testing import SearchPolicy, SimulatedSearch
from tune_rescon.tuning import Decision

__all__ = ["CONTESTANTS", "Contest", "space_of", "syne_tune_is_there"]

#: Number of trials that no search here reaches.
UNLIMITED = 100_000


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What a contestant is told. One that plans has either ``epochs`` or ``seconds``; others have neither."""

    table: Table
    seed: int
    workers: int
    clock: Callable[[], float]
    epochs: int | None = None
    seconds: float | None = None

    @property
    def budget_epochs(self) -> int:
        """The budget in epochs, at the mean duration of an epoch."""
        if self.epochs is not None:
            return self.epochs
        assert self.seconds is not None
        return round(self.seconds * self.workers / float(self.table.seconds.mean()))


def space_of(contest: Contest, **sections: Mapping[str, object]) -> Space:
    """Return a space with the table's parameters. Their names are not those of a network: unchecked."""
    base = load_space("att92", ["initial=[]"])
    changes: dict[str, dict[str, object]] = {
        "fidelity": {"min": 1, "max": contest.table.last},
        "budget": {"trials": UNLIMITED},
        "sampler": {"seed": contest.seed},
        "scheduler": {"type": "asha", "variant": "stop", "reduction_factor": 3},
    }
    for name, keys in sections.items():
        changes[name] = {**changes.get(name, {}), **keys}
    updated = {name: getattr(base, name).model_copy(update=keys) for name, keys in changes.items()}
    return base.model_copy(update={**updated, "parameters": dict(contest.table.parameters)})


Contestant = Callable[[Contest], SearchPolicy]


def ours(**sections: Mapping[str, object]) -> Contestant:
    """This package's search, with some keys of its space changed."""
    return lambda contest: SimulatedSearch(space_of(contest, **sections)).policy()


def auto(**sections: Mapping[str, object]) -> Contestant:
    """This package's search with the scheduler ``auto``, which is told the budget."""

    def make(contest: Contest) -> SearchPolicy:
        hours = None if contest.seconds is None else contest.seconds / 3600
        budget = {"epochs": contest.epochs, "hours": hours, **sections.get("budget", {})}
        others = {name: keys for name, keys in sections.items() if name != "budget"}
        space = space_of(contest, budget=budget, scheduler={"type": "auto"}, **others)
        return SimulatedSearch(space, clock=contest.clock, slots=contest.workers).policy()

    return make


@dataclass(kw_only=True)
class _Drawn:
    """A trial of a rival."""

    number: int
    parameters: Mapping[str, Any]
    epochs: int = 0


class _Rival:
    """A policy whose trials neither crash nor lose their workers."""

    exhausted = False

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        raise AssertionError(
            f"no recorded curve crashes, but trial {number} is {state}: {error} {checkpoint}"
        )

    def worker_died(self, number: int) -> None:
        raise AssertionError(f"trial {number} cannot lose its worker: none dies in the contest")


class OptunaLoop(_Rival):
    """Optuna's documented loop with a pruner: ask, report, should_prune, tell. TPE has its defaults."""

    def __init__(self, contest: Contest, pruner: optuna.pruners.BasePruner) -> None:
        self._space, self._last = space_of(contest), contest.table.last
        sampler = optuna.samplers.TPESampler(seed=contest.seed)
        self._study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        self._running: dict[int, optuna.Trial] = {}

    def next_trial(self) -> _Drawn:
        trial = self._study.ask()
        suggest(self._space, trial)
        self._running[trial.number] = trial
        return _Drawn(number=trial.number, parameters=dict(trial.params))

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        trial, value = self._running[number], metrics["val_accuracy"]
        if not math.isfinite(value):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return Decision.DIVERGED
        trial.report(value, epoch)
        if epoch >= self._last:
            self._study.tell(trial, value)
            return Decision.FINISH
        if trial.should_prune():
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return Decision.STOP
        return Decision.CONTINUE


def one_epoch_then_the_best(k: int) -> Contestant:
    """One epoch each for as many as the budget allows, then the best ``k`` to the end."""

    def make(contest: Contest) -> SearchPolicy:
        count = max(k, contest.budget_epochs - k * (contest.table.last - 1))
        return OneEpochThenTopK(space_of(contest, sampler={"type": "random"}, budget={"trials": count}), k)

    return make


class SyneTune(_Rival):
    """A scheduler of Syne Tune, called as its Tuner calls it."""

    def __init__(self, contest: Contest, kind: str) -> None:
        config_space = import_module("syne_tune.config_space")
        baselines = import_module("syne_tune.optimizer.baselines")
        domains = {
            name: _domain(config_space, parameter) for name, parameter in contest.table.parameters.items()
        }
        np.random.seed(contest.seed)
        self._last = contest.table.last
        self._running: list[Any] = []
        self._scheduler = getattr(baselines, kind)(
            domains,
            metric="val_accuracy",
            time_attr="epoch",
            max_t=contest.table.last,
            do_minimize=False,
            random_seed=contest.seed,
        )

    def next_trial(self) -> _Drawn:
        drawn = self._scheduler.suggest().config
        status = import_module("syne_tune.backend.trial_status")
        trial = status.Trial(trial_id=len(self._running), config=drawn, creation_time=datetime(2026, 1, 1))
        self._scheduler.on_trial_add(trial)
        self._running.append(trial)
        return _Drawn(number=trial.trial_id, parameters=dict(drawn))

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        trial, value = self._running[number], metrics["val_accuracy"]
        if not math.isfinite(value):
            self._scheduler.on_trial_error(trial)
            return Decision.DIVERGED
        result = {"val_accuracy": value, "epoch": epoch}
        if epoch >= self._last:
            self._scheduler.on_trial_complete(trial, result)
            return Decision.FINISH
        decided = self._scheduler.on_trial_result(trial, result)
        return Decision.STOP if decided == "STOP" else Decision.CONTINUE


def _domain(config_space: Any, parameter: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return config_space.choice(list(parameter.choices))
    names = ("randint", "lograndint") if isinstance(parameter, IntParameter) else ("uniform", "loguniform")
    return getattr(config_space, names[parameter.log])(parameter.low, parameter.high)


def syne_tune_is_there() -> bool:
    """Return whether Syne Tune can be imported."""
    return find_spec("syne_tune") is not None


RANDOM = {"type": "random"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant of the table."""

    make: Contestant
    plans: bool = False
    """True if it is told the budget. All others do the same under any budget."""
    needs_syne_tune: bool = field(default=False)


CONTESTANTS: Mapping[str, Entry] = {
    "ours, auto": Entry(make=auto(), plans=True),
    "ours, auto, random draws": Entry(make=auto(sampler=RANDOM), plans=True),
    "ours, asha stop": Entry(make=ours()),
    "ours, asha promote": Entry(make=ours(scheduler={"variant": "promote"})),
    "ours, asha stop, first rung 9": Entry(make=ours(fidelity={"min": 9})),
    "random, full trainings": Entry(make=ours(sampler=RANDOM, scheduler={"type": "none"})),
    "one epoch, then the best 8": Entry(make=one_epoch_then_the_best(8), plans=True),
    "Ray ASHAScheduler + OptunaSearch": Entry(make=lambda contest: plain_ray(space_of(contest))),
    "Optuna TPE + SuccessiveHalvingPruner": Entry(
        make=lambda contest: OptunaLoop(
            contest, optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        )
    ),
    "Optuna TPE + HyperbandPruner": Entry(
        make=lambda contest: OptunaLoop(
            contest,
            optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=contest.table.last, reduction_factor=3
            ),
        )
    ),
    "Syne Tune ASHA": Entry(make=lambda contest: SyneTune(contest, "ASHA"), needs_syne_tune=True),
    "Syne Tune BOHB": Entry(make=lambda contest: SyneTune(contest, "BOHB"), needs_syne_tune=True),
    "Syne Tune ASHA-CQR": Entry(make=lambda contest: SyneTune(contest, "ASHACQR"), needs_syne_tune=True),
}
