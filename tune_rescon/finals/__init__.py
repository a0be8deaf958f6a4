"""The finals of a search: train its best configurations, or published ones, in full; evaluate them once.

::

    finals_space      the trainings as a space, which the search's engine runs row by row
    evaluated_configs the results on the test images, over the seeds
    find_recipe       published training recipes
    PUBLISHED         published figures to reproduce
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.finals.evaluation import Estimate, EvaluatedConfig, evaluated_configs
    from tune_rescon.finals.plan import (
        RECIPES,
        Recipe,
        TrainingPlan,
        epochs_within,
        finals_seconds,
        finals_space,
        find_recipe,
        local_resources,
        of_dataset,
        preset_config,
        read_duration,
        seconds_per_epoch,
        top_configs,
        trial_configs,
    )
    from tune_rescon.finals.presentation import (
        FinalsPresentation,
        print_evaluation,
        print_published,
        print_reproduction,
    )
    from tune_rescon.finals.published import PUBLISHED, PublishedRow, Shares, find_rows, row_space

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "Estimate",
    "EvaluatedConfig",
    "FinalsPresentation",
    "PublishedRow",
    "Recipe",
    "Shares",
    "TrainingPlan",
    "epochs_within",
    "evaluated_configs",
    "finals_seconds",
    "finals_space",
    "find_recipe",
    "find_rows",
    "local_resources",
    "of_dataset",
    "preset_config",
    "print_evaluation",
    "print_published",
    "print_reproduction",
    "read_duration",
    "row_space",
    "seconds_per_epoch",
    "top_configs",
    "trial_configs",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PUBLISHED": "published",
        "RECIPES": "plan",
        "Estimate": "evaluation",
        "EvaluatedConfig": "evaluation",
        "FinalsPresentation": "presentation",
        "PublishedRow": "published",
        "Recipe": "plan",
        "Shares": "published",
        "TrainingPlan": "plan",
        "epochs_within": "plan",
        "top_configs": "plan",
        "finals_seconds": "plan",
        "finals_space": "plan",
        "find_recipe": "plan",
        "find_rows": "published",
        "evaluated_configs": "evaluation",
        "local_resources": "plan",
        "of_dataset": "plan",
        "preset_config": "plan",
        "print_evaluation": "presentation",
        "print_published": "presentation",
        "print_reproduction": "presentation",
        "read_duration": "plan",
        "row_space": "published",
        "seconds_per_epoch": "plan",
        "trial_configs": "plan",
    },
)
