"""Importance of each parameter for a good value, computed by PED-ANOVA.

The method is from Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
Subspaces" (IJCAI 2023). This module uses Optuna's implementation, which supports conditional parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import optuna
from optuna.trial import create_trial

from tune_rescon.spaces import Space, distributions
from tune_rescon.spaces.sampling import without_study_logs
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["parameter_importance"]

#: Minimum number of values. With fewer values the result has no meaning: PED-ANOVA uses the best tenth, which
#: is only two of 20 trials.
MIN_TRIALS: Final = 20

#: The share of best trials that PED-ANOVA compares with all trials (Optuna's ``target_quantile``).
TARGET_QUANTILE: Final = 0.1

#: The largest share of trials that may be as good as the last of the best ones. With more equal values, every
#: parameter would get nearly the same importance.
MAX_TARGET_SHARE: Final = 0.5


def parameter_importance(
    space: Space, trials: Mapping[int, TrialRecord], values: Mapping[int, float]
) -> dict[str, float]:
    """Return the share of each parameter in the total importance, the most important parameter first.

    Args:
        space: The current space of the search. Trials that it does not contain are left out.
        trials: The trials, by number.
        values: The values to explain, by trial number. They must be finite and measured after the same epoch.
            Trials without a value are ignored.

    Returns:
        The shares, by parameter name. Empty if there are too few values, or if more than half of the trials
        are among the best tenth, because their values are equal.
    """
    known = distributions(space)
    placed = {number: trials[number].parameters_in(space, first=space) for number in values}
    usable = {number: params for number, params in placed.items() if params is not None}
    maximize = space.metric.mode == "max"
    if (
        len(usable) < MIN_TRIALS
        or _best_share([values[n] for n in usable], maximize=maximize) > MAX_TARGET_SHARE
    ):
        return {}
    # Imported here because it imports scikit-learn, which only an evaluator that is not used here needs.
    from optuna.importance import get_param_importances

    with without_study_logs():
        study = optuna.create_study(direction="maximize" if maximize else "minimize")
    study.add_trials(
        [
            create_trial(
                params=params,
                distributions={name: known[name] for name in params},
                value=values[number],
            )
            for number, params in usable.items()
        ]
    )
    return {name: float(share) for name, share in get_param_importances(study).items()}


def _best_share(values: Sequence[float], *, maximize: bool) -> float:
    """Return the share of values that are in the best tenth, or equal to the last one in it.

    >>> _best_share([0.1] * 18 + [0.2] * 2, maximize=True), _best_share([0.1] * 19 + [0.2], maximize=True)
    (0.1, 1.0)
    """
    ranked = sorted(values, reverse=maximize)
    last = ranked[math.ceil(TARGET_QUANTILE * len(ranked)) - 1]
    return sum(value >= last if maximize else value <= last for value in ranked) / len(ranked)
