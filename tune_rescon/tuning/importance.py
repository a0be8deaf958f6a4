"""How much each parameter mattered for a good value, by PED-ANOVA.

Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces" (IJCAI
2023), in Optuna's implementation, which knows conditional parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import optuna
from optuna.trial import create_trial

from tune_rescon.spaces import Space, distributions, place_config, to_optuna
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["parameter_importance"]

#: Fewer values say nothing: of 20, the tenth that PED-ANOVA looks at is two trials.
FEWEST: Final = 20


def parameter_importance(
    space: Space, trials: Mapping[int, TrialRecord], values: Mapping[int, float]
) -> dict[str, float]:
    """The share of each parameter, the most important first; empty where too little is known.

    Args:
        space: the search's, as it is now. Trials that it does not contain are left out.
        trials: by number.
        values: what is explained: of some trials, by number, finite and measured after the same epoch.
    """
    known = distributions(space)
    placed = {number: _placed(space, trials[number]) for number in values}
    usable = {number: params for number, params in placed.items() if params is not None}
    if len(usable) < FEWEST or len(set(values.values())) < 2:
        return {}
    # Imported here: it brings scikit-learn, for an evaluator that is not used.
    from optuna.importance import get_param_importances

    study = _study(space)
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


def _placed(space: Space, trial: TrialRecord) -> dict[str, Any] | None:
    config = trial.config(space)
    sampled = place_config(space, config.to_dict()).sampled if config else None
    return None if sampled is None else to_optuna(sampled)


def _study(space: Space) -> optuna.Study:
    before = optuna.logging.get_verbosity()
    # It says that it made a study, which is nobody's search.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(direction="maximize" if space.metric.mode == "max" else "minimize")
    finally:
        optuna.logging.set_verbosity(before)
