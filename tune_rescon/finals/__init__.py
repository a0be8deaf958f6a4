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
    from tune_rescon.finals.judging import Figure, Finalist, judgement
    from tune_rescon.finals.lengths import epochs_within, finals_seconds, read_duration
    from tune_rescon.finals.plan import (
        finalists,
        finals_space,
        local_resources,
        of_dataset,
        preset_config,
        seconds_per_epoch,
    )
    from tune_rescon.finals.presentation import (
        FinalsPresentation,
        print_judgement,
        print_published,
        print_reproduction,
    )
    from tune_rescon.finals.published import PUBLISHED, PublishedRow, find_rows
    from tune_rescon.finals.recipes import RECIPES, Recipe, find_recipe
    from tune_rescon.finals.reproduction import Shares, row_space

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "Figure",
    "Finalist",
    "FinalsPresentation",
    "PublishedRow",
    "Recipe",
    "Shares",
    "epochs_within",
    "finalists",
    "finals_seconds",
    "finals_space",
    "find_recipe",
    "find_rows",
    "judgement",
    "local_resources",
    "of_dataset",
    "preset_config",
    "print_judgement",
    "print_published",
    "print_reproduction",
    "read_duration",
    "row_space",
    "seconds_per_epoch",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PUBLISHED": "published",
        "RECIPES": "recipes",
        "Figure": "judging",
        "Finalist": "judging",
        "FinalsPresentation": "presentation",
        "PublishedRow": "published",
        "Recipe": "recipes",
        "Shares": "reproduction",
        "epochs_within": "lengths",
        "finalists": "plan",
        "finals_seconds": "lengths",
        "finals_space": "plan",
        "find_recipe": "recipes",
        "find_rows": "published",
        "judgement": "judging",
        "local_resources": "plan",
        "of_dataset": "plan",
        "preset_config": "plan",
        "print_judgement": "presentation",
        "print_published": "presentation",
        "print_reproduction": "presentation",
        "read_duration": "lengths",
        "row_space": "reproduction",
        "seconds_per_epoch": "plan",
    },
)
