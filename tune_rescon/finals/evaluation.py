"""Results of the finals: the trainings of each configuration, with their mean and standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tune_rescon.metric_names import TEST_METRICS, is_test_metric
from tune_rescon.tuning import StudyResult, TrialRecord, repeated

__all__ = ["Estimate", "EvaluatedConfig", "Lead", "evaluated_configs", "evaluation_document"]

#: Confidence level of the intervals: how often such an interval contains the true difference.
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean and spread of a metric over the trainings of one configuration."""

    mean: float
    spread: float
    """Sample standard deviation; nan for a single training."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from ``values``, which must not be empty."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(mean=statistics.fmean(values), spread=spread, values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class EvaluatedConfig:
    """One configuration that was trained to its last epoch, once for each seed."""

    trials: tuple[TrialRecord, ...]
    figures: Mapping[str, Estimate]
    """Estimates by the metric names of ``metric_names.TEST_METRICS``."""
    by_class: Mapping[str, Estimate] = field(default_factory=dict)
    """Accuracy on the test images of each class, by class name."""
    params_m: float
    """Number of parameters, in millions."""
    gmacs: float
    """Multiply-adds of one image's forward pass, in billions."""
    hours: float
    """Device-hours of all trainings."""


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The lead of one configuration's mean over another's."""

    difference: float
    """Difference of the means; positive if the first configuration is better."""
    margin: float
    """Half the width of the :data:`CONFIDENCE` interval of the difference, over the seeds. It is infinite if
    one of the two configurations was trained once, because the effect of the seed is then unknown."""

    @classmethod
    def of(cls, first: Estimate, second: Estimate, *, maximize: bool) -> Lead:
        """Return the lead of ``first`` over ``second``, by Welch's t interval (Biometrika, 1947).

        With only two or three trainings each, the interval is several standard errors wide.

        Args:
            first: the estimate of the first configuration.
            second: the estimate of the second configuration.
            maximize: True if a higher value is better.

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
        # Imported here, because the import takes a second and only the end of the finals needs it.
        from scipy.stats import t

        freedom = variance**2 / sum(part**2 / free for part, free in parts)
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
        return cls(difference=difference, margin=quantile * math.sqrt(variance))

    @property
    def is_known(self) -> bool:
        """True if both configurations were trained with several seeds."""
        return math.isfinite(self.margin)

    @property
    def is_beyond_seeds(self) -> bool:
        """True if the whole interval is above zero."""
        return self.difference > self.margin


def evaluated_configs(result: StudyResult) -> tuple[EvaluatedConfig, ...]:
    """Return the configurations with at least one finished training, the best mean first."""
    found = [_evaluated_config(result, trials) for trials in repeated(result.trials)]
    return tuple(sorted(found, key=lambda one: one.figures[result.metric].mean, reverse=result.maximize))


def evaluation_document(result: StudyResult, found: Sequence[EvaluatedConfig]) -> dict[str, Any]:
    """Return the content of ``finals.json`` as plain values."""
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


def _evaluated_config(result: StudyResult, trials: tuple[TrialRecord, ...]) -> EvaluatedConfig:
    names = [name for name in trials[0].history if is_test_metric(name)]
    cost = result.costs[trials[0].number]
    figures = {name: Estimate.of([trial.history[name][-1] for trial in trials]) for name in names}
    return EvaluatedConfig(
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
