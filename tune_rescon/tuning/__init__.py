"""A search: its sampler, its stopping rule, its study on disk, its trials on Ray Tune, and its result.

Names are loaded on first use, because a dry run needs the rungs but not Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.tuning.callbacks import ClusterSize, Gauges, Presentation, SearchCallback
    from tune_rescon.tuning.coordinator import Coordinator, SearchPlan
    from tune_rescon.tuning.cost_model import CostModel, TrialCost, datasets_of
    from tune_rescon.tuning.folder import SearchFolder, resolve_storage, write_atomically
    from tune_rescon.tuning.importance import parameter_importance
    from tune_rescon.tuning.mlflow_sync import sync_tracking
    from tune_rescon.tuning.options import (
        RunOptions,
        SearchLocation,
        absolute_storage,
        command_at,
        default_cache_root,
        location_flags,
        resolve_data_root,
        sync_command,
    )
    from tune_rescon.tuning.overview import SearchOverview, list_searches
    from tune_rescon.tuning.prepare import cache_messages, evaluation_messages, with_store_size
    from tune_rescon.tuning.ray.worker import TrialTask
    from tune_rescon.tuning.reader import read_search
    from tune_rescon.tuning.resources import fit_to_machine, machine_message
    from tune_rescon.tuning.result import (
        SearchState,
        StudyResult,
        best_trial,
        build_result,
        pareto_front,
        repeated,
    )
    from tune_rescon.tuning.sampler import SearchSampler
    from tune_rescon.tuning.search import run_search
    from tune_rescon.tuning.search_storage import find_search
    from tune_rescon.tuning.steering import enqueue_trial, stop_trials
    from tune_rescon.tuning.stopping.asha import SuccessiveHalving, asha_rungs
    from tune_rescon.tuning.stopping.from_space import make_stopping_rule, possible_rungs
    from tune_rescon.tuning.stopping.median import MedianRule
    from tune_rescon.tuning.stopping.rule import Decision, Observation, StoppingRule, Verdict
    from tune_rescon.tuning.study import StudyRecord
    from tune_rescon.tuning.trial import TrialRecord
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
