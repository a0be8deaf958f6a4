"""The finals of a search: train its best configurations, or published ones, in full; evaluate them once.

::

    finals_space      the final trainings as a space, which the search's engine runs row by row
    evaluated_configs the results on the test images, over the seeds
    find_recipe       published training recipes
    PUBLISHED         published figures to reproduce
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.finals.changes import changed_layout, changes_since
    from tune_rescon.finals.evaluation import (
        Estimate,
        EvaluatedConfig,
        FinalsPresentation,
        evaluated_configs,
        print_evaluation,
        print_finals,
    )
    from tune_rescon.finals.plan import (
        RECIPES,
        Recipe,
        TrainingPlan,
        as_trained_now,
        epochs_within,
        finals_seconds,
        finals_space,
        find_recipe,
        image_growth,
        limit_message,
        local_resources,
        of_dataset,
        preset_config,
        read_duration,
        seconds_per_epoch,
        top_configs,
        trial_configs,
    )
    from tune_rescon.finals.published import (
        PUBLISHED,
        PublishedRow,
        Shares,
        check_images,
        find_rows,
        print_published,
        print_reproduction,
        row_space,
    )
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
