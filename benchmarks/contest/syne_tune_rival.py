"""Syne Tune's schedulers, called as its Tuner calls them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from typing import Any

import numpy as np

from contest.contestant import Contest, Drawn, Library, RivalPolicy
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter
from tune_rescon.tuning import Decision

__all__ = ["DYHPO", "SYNE_TUNE", "SyneTune", "SyneTuneDyHPO"]

SYNE_TUNE = Library(
    requirement="syne-tune>=0.16",
    install="--target DIRECTORY --no-deps 'syne-tune>=0.16' dill patsy statsmodels xgboost-cpu",
)

#: Version 0.15 removed DyHPO.
DYHPO = Library(
    requirement="syne-tune>=0.14,<0.15",
    install="--target DIRECTORY --no-deps 'syne-tune>=0.14,<0.15' autograd dill",
)


class SyneTune(RivalPolicy):
    """A scheduler that stops trials: ASHA and its relatives."""

    def __init__(self, contest: Contest, kind: str) -> None:
        """Make the scheduler that Syne Tune's ``baselines`` call ``kind``."""
        baselines = import_module("syne_tune.optimizer.baselines")
        np.random.seed(contest.seed)
        self._last = contest.table.last
        self._running: list[Any] = []
        self._scheduler = getattr(baselines, kind)(
            _domains(contest),
            metric="val_accuracy",
            time_attr="epoch",
            max_t=contest.table.last,
            do_minimize=False,
            random_seed=contest.seed,
        )

    def next_trial(self) -> Drawn:
        drawn = self._scheduler.suggest().config
        trial = _trial(len(self._running), drawn)
        self._scheduler.on_trial_add(trial)
        self._running.append(trial)
        return Drawn(number=trial.trial_id, parameters=dict(drawn))

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        value = metrics["val_accuracy"]
        return _report(self._scheduler, self._running[number], epoch, value, last=self._last)


class SyneTuneDyHPO(RivalPolicy):
    """DyHPO: a Gaussian process chooses between resuming a paused trial and a new one."""

    def __init__(self, contest: Contest) -> None:
        """Make the scheduler with the defaults of its class."""
        baselines = import_module("syne_tune.optimizer.legacy_baselines")
        np.random.seed(contest.seed)
        self._last = contest.table.last
        self._trials: list[Any] = []
        self._drawn: list[Drawn] = []
        self._scheduler = baselines.DyHPO(
            _domains(contest),
            metric="val_accuracy",
            resource_attr="epoch",
            mode="max",
            max_t=contest.table.last,
            random_seed=contest.seed,
        )

    def next_trial(self) -> Drawn:
        suggestion = self._scheduler.suggest(len(self._trials))
        if not suggestion.spawn_new_trial_id:
            drawn: Drawn = self._drawn[suggestion.checkpoint_trial_id]
            return drawn
        trial = _trial(len(self._trials), suggestion.config)
        self._scheduler.on_trial_add(trial)
        self._trials.append(trial)
        self._drawn.append(Drawn(number=trial.trial_id, parameters=dict(suggestion.config)))
        return self._drawn[-1]

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        trial, drawn, value = self._trials[number], self._drawn[number], metrics["val_accuracy"]
        if epoch <= drawn.epochs:  # a resumed trial repeats the epoch of its checkpoint
            return Decision.CONTINUE
        drawn.epochs = epoch
        return _report(self._scheduler, trial, epoch, value, last=self._last)


def _report(scheduler: Any, trial: Any, epoch: int, value: float, *, last: int) -> Decision:
    """Report an epoch to a scheduler of Syne Tune, and return its decision."""
    if not math.isfinite(value):
        scheduler.on_trial_error(trial)
        return Decision.DIVERGED
    result = {"val_accuracy": value, "epoch": epoch}
    if epoch >= last:
        scheduler.on_trial_complete(trial, result)
        return Decision.FINISH
    decided = scheduler.on_trial_result(trial, result)
    return {"PAUSE": Decision.PAUSE, "STOP": Decision.STOP}.get(decided, Decision.CONTINUE)


def _trial(number: int, config: Mapping[str, Any]) -> Any:
    status = import_module("syne_tune.backend.trial_status")
    return status.Trial(trial_id=number, config=config, creation_time=datetime(2026, 1, 1))


def _domains(contest: Contest) -> dict[str, Any]:
    """Return the table's parameters as Syne Tune's."""
    config_space = import_module("syne_tune.config_space")
    return {name: _domain(config_space, parameter) for name, parameter in contest.table.parameters.items()}


def _domain(config_space: Any, parameter: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return config_space.choice(list(parameter.choices))
    names = ("randint", "lograndint") if isinstance(parameter, IntParameter) else ("uniform", "loguniform")
    return getattr(config_space, names[parameter.log])(parameter.low, parameter.high)
