"""What comes after a search: its best configurations, or published ones, trained in full and judged once.

::

    finals_space      what is to be trained, as a space that the search's engine runs row by row
    judgement         what the test images said of it, over the seeds
    find_recipe       published ways to train
    published_rows    published figures, to be reproduced
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.finals.judgement import Figure, Finalist, judgement
    from tune_rescon.finals.lengths import epochs_within, finals_seconds, read_duration
    from tune_rescon.finals.plan import (
        finalists,
        finals_space,
        local_resources,
        of_dataset,
        preset_config,
        seconds_per_epoch,
    )
    from tune_rescon.finals.presentation import FinalsPresentation, print_judgement
    from tune_rescon.finals.recipes import RECIPES, Recipe, find_recipe

__all__ = [
    "RECIPES",
    "Figure",
    "Finalist",
    "FinalsPresentation",
    "Recipe",
    "epochs_within",
    "finalists",
    "finals_seconds",
    "finals_space",
    "find_recipe",
    "judgement",
    "local_resources",
    "of_dataset",
    "preset_config",
    "print_judgement",
    "read_duration",
    "seconds_per_epoch",
]

__getattr__ = lazy_names(
    __name__,
    {
        "RECIPES": "recipes",
        "Figure": "judgement",
        "Finalist": "judgement",
        "FinalsPresentation": "presentation",
        "Recipe": "recipes",
        "epochs_within": "lengths",
        "finalists": "plan",
        "finals_seconds": "lengths",
        "finals_space": "plan",
        "find_recipe": "recipes",
        "judgement": "judgement",
        "local_resources": "plan",
        "of_dataset": "plan",
        "preset_config": "plan",
        "print_judgement": "presentation",
        "read_duration": "lengths",
        "seconds_per_epoch": "plan",
    },
)
