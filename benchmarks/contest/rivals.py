"""Who takes part: ours, Ray's own classes, and the searches one would write in an afternoon."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from contest.contestant import RivalPolicy
from tune_rescon.spaces import Space, preview, suggest
from tune_rescon.testing import SearchPolicy, SimulatedSearch, TunePolicy
from tune_rescon.tuning import Decision

__all__ = ["OneEpochThenTopK", "Rival", "changed", "ours", "plain_ray"]

#: Makes a search of a space.
Rival = Callable[[Space], SearchPolicy]


def ours(space: Space) -> SearchPolicy:
    """The product's coordinator, sampler and scheduler, as ``run_search`` puts them together."""
    return SimulatedSearch(space).policy()


def changed(**sections: Mapping[str, object]) -> Rival:
    """Ours, on a space with some keys of its sections changed."""

    def rival(space: Space) -> SearchPolicy:
        updated = {
            name: getattr(space, name).model_copy(update=dict(keys)) for name, keys in sections.items()
        }
        return ours(space.model_copy(update=updated))

    return rival


def plain_ray(space: Space) -> SearchPolicy:
    """Ray Tune's ASHAScheduler and OptunaSearch, set up as its documentation shows."""

    def define(trial: Any) -> None:
        suggest(space, trial)

    searcher = OptunaSearch(
        define,
        metric=space.metric.name,
        mode=space.metric.mode,
        seed=space.sampler.seed,
        study_name=f"plain-{space.sampler.seed}",
    )
    scheduler = ASHAScheduler(
        metric=space.metric.name,
        mode=space.metric.mode,
        max_t=space.fidelity.max,
        grace_period=space.fidelity.min,
        reduction_factor=space.scheduler.reduction_factor,
    )
    return TunePolicy(searcher, scheduler, num_samples=space.budget.trials)


@dataclass(kw_only=True)
class _Drawn:
    number: int
    parameters: Mapping[str, Any]
    values: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        return len(self.values)


class OneEpochThenTopK(RivalPolicy):
    """Every configuration of a random sample for one epoch, then the best ``k`` of them to the end."""

    def __init__(self, space: Space, k: int) -> None:
        self._last = space.fidelity.max
        drawn = enumerate(preview(space, space.budget.trials))
        self._trials = [_Drawn(number=number, parameters=parameters) for number, parameters in drawn]
        self._k = k
        self._waiting = list(self._trials)
        self._unjudged = len(self._trials)

    @property
    def no_more_trials(self) -> bool:
        return not self._waiting and not self._unjudged

    def next_trial(self) -> _Drawn | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        trial = self._trials[number]
        if epoch > trial.epochs:
            trial.values.append(metrics["val_accuracy"])
        if not math.isfinite(trial.values[-1]):
            self._unjudged -= epoch == 1
            return Decision.DIVERGED
        if epoch == self._last:
            return Decision.FINISH
        return Decision.CONTINUE if epoch > 1 or not self._unjudged else self._judge()

    def _judge(self) -> Decision:
        self._unjudged -= 1
        if not self._unjudged:
            judged = [trial for trial in self._trials if math.isfinite(trial.values[0])]
            self._waiting = sorted(judged, key=lambda trial: -trial.values[0])[: self._k]
        return Decision.STOP
