"""What the finals came to: each configuration's trainings together, and their mean and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tune_rescon.config import TEST_METRICS, is_test_metric
from tune_rescon.tuning import StudyResult, TrialRecord, repeated

__all__ = ["Estimate", "Finalist", "Lead", "judgement", "judgement_document"]

#: Of intervals: how often such an interval holds the true difference.
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measure over the trainings of one configuration."""

    mean: float
    spread: float
    """Sample standard deviation; nan of a single training."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The figure of these values, of which there is at least one."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(mean=statistics.fmean(values), spread=spread, values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One configuration that was trained to its end, once for each seed."""

    trials: tuple[TrialRecord, ...]
    figures: Mapping[str, Estimate]
    """By the names of ``config.TEST_METRICS``."""
    by_class: Mapping[str, Estimate] = field(default_factory=dict)
    """Accuracy on the test images of each class."""
    params_m: float
    """Parameters, millions."""
    gmacs: float
    """Multiply-adds of one image's forward pass, billions."""
    hours: float
    """Device-hours of all trainings."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """How far one configuration's mean is ahead of another's."""

    difference: float
    """Positive where it is ahead."""
    margin: float
    """Half the interval of :data:`CONFIDENCE` around it, over the seeds; infinite where the seed's effect is
    unknown, for one of the two was trained once."""

    @classmethod
    def of(cls, first: Estimate, second: Estimate, *, maximize: bool) -> Lead:
        """The lead of ``first`` on ``second``, by Welch's t interval (Biometrika, 1947).

        Two or three trainings each are few: the interval is several standard errors wide.

        >>> Lead.of(Estimate.of([0.8, 0.82]), Estimate.of([0.7, 0.71]), maximize=True).margin > 0.03
        True
        >>> Lead.of(Estimate.of([0.8]), Estimate.of([0.7, 0.71]), maximize=True).margin
        inf
        """
        difference = first.mean - second.mean if maximize else second.mean - first.mean
        parts = [(one.spread**2 / len(one.values), len(one.values) - 1) for one in (first, second)]
        variance = sum(part for part, _ in parts)
        if not math.isfinite(variance):
            return cls(difference=difference, margin=math.inf)
        if variance == 0:
            return cls(difference=difference, margin=0.0)
        # Imported here: it takes a second, and only the end of finals needs it.
        from scipy.stats import t

        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
        return cls(difference=difference, margin=quantile * math.sqrt(variance))

    @property
    def is_known(self) -> bool:
        """Whether both were trained with several seeds."""
        return math.isfinite(self.margin)

    @property
    def is_beyond_seeds(self) -> bool:
        """Whether the interval lies above zero."""
        return self.difference > self.margin


def judgement(result: StudyResult) -> tuple[Finalist, ...]:
    """The configurations of which a training reached its end, the best mean first."""
    found = [_finalist(result, trials) for trials in repeated(result.trials)]
    return tuple(sorted(found, key=lambda one: one.figures[result.metric].mean, reverse=result.maximize))


def judgement_document(result: StudyResult, found: Sequence[Finalist]) -> dict[str, Any]:
    """``finals.json``: plain values."""
    return {
        "name": result.name,
        "dataset": result.space.dataset.name,
        "epochs": result.space.fidelity.max,
        "metric": result.metric,
        "finalists": [
            {
                "trials": [trial.number for trial in one.trials],
                "parameters": dict(one.trials[0].parameters),
                "params_m": one.params_m,
                "gmacs": one.gmacs,
                "hours": one.hours,
                **{name: _plain(estimate) for name, estimate in one.figures.items()},
                "accuracy_by_class": {name: _plain(estimate) for name, estimate in one.by_class.items()},
            }
            for one in found
        ],
    }


def _finalist(result: StudyResult, trials: tuple[TrialRecord, ...]) -> Finalist:
    names = [name for name in trials[0].history if is_test_metric(name)]
    cost = result.costs[trials[0].number]
    figures = {name: Estimate.of([trial.history[name][-1] for trial in trials]) for name in names}
    return Finalist(
        trials=trials,
        figures={name: figures[name] for name in TEST_METRICS if name in figures},
        by_class={name.partition("/")[2]: figures[name] for name in names if "/" in name},
        params_m=cost.params_m,
        gmacs=cost.gmacs,
        hours=math.fsum(result.compute_hours(trial) for trial in trials),
    )


def _plain(estimate: Estimate) -> dict[str, Any]:
    spread = estimate.spread if math.isfinite(estimate.spread) else None
    return {"mean": estimate.mean, "spread": spread, "values": list(estimate.values)}
