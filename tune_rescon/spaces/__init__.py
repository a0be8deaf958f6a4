"""Search spaces: the strictly validated file, and the trials drawn from it. Imports no torch, ray or mlflow.

::

    load_space    a name or a file (and overrides) -> Space, or one error that lists every problem
    load_goal     a file -> its metric and budget, in a fraction of the time
    dump_space    Space -> the text of a file
    yaml_text     plain values -> YAML that all tools read alike
    suggest, preview, grid_points    Space -> sampled dicts of the active parameters
    corners       the largest and smallest values of given fields, in every combination
    extreme_value the largest or smallest value of one field
    trial_config  Space and a sampled dict -> TrialConfig
    overlap       a trial of another space -> the same trial in this space, or the reason why it does not fit
    place_config  a trial of this search, by its configuration -> the same trial in the present space
    point_key, count_points, free_points, pending_rows    the points of a space, and those that have run
    can_have, with_parents    the values that another program chose for a trial
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names
from tune_rescon.spaces.field_rules import corners, extreme_value
from tune_rescon.spaces.loading import (
    chosen_values,
    dump_space,
    list_spaces,
    load_goal,
    load_space,
    parse_goal,
    parse_space,
    space_folder,
    yaml_text,
)
from tune_rescon.spaces.parameters import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    When,
    count_points,
    is_active,
)
from tune_rescon.spaces.sampling import (
    Overlap,
    can_have,
    distributions,
    first_rows,
    free_points,
    from_optuna,
    grid_points,
    overlap,
    overlap_message,
    pending_rows,
    place_config,
    point_key,
    preview,
    random_points,
    suggest,
    to_optuna,
    trial_config,
    with_parents,
)
from tune_rescon.spaces.sections import (
    AutoResources,
    Budget,
    Constraints,
    Fidelity,
    Goal,
    Latency,
    Metric,
    Resources,
    Sampler,
    Scheduler,
)
from tune_rescon.spaces.space import Space

if not TYPE_CHECKING:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
