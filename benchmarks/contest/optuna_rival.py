"""Optuna's own loop with a pruner."""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna

from contest.contestant import Contest, Drawn, RivalPolicy, space_of
from tune_rescon.spaces import suggest
from tune_rescon.tuning import Decision

__all__ = ["OptunaLoop"]


class OptunaLoop(RivalPolicy):
    """Optuna's documented loop with a pruner: ask, report, should_prune, tell. TPE has its defaults."""

    def __init__(self, contest: Contest, pruner: optuna.pruners.BasePruner) -> None:
        self._space, self._last = space_of(contest), contest.table.last
        sampler = optuna.samplers.TPESampler(seed=contest.seed)
        # The name is a seed, too: HyperbandPruner draws a trial's bracket from it.
        name = f"seed-{contest.seed}"
        self._study = optuna.create_study(
            study_name=name, direction="maximize", sampler=sampler, pruner=pruner
        )
        self._running: dict[int, optuna.Trial] = {}

    def next_trial(self) -> Drawn:
        trial = self._study.ask()
        suggest(self._space, trial)
        self._running[trial.number] = trial
        return Drawn(number=trial.number, parameters=dict(trial.params))

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
