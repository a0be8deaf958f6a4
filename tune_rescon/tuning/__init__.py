"""All that speaks to Ray Tune and Optuna: rungs, the durable record, and the run of a search.

Names are loaded on first use: a dry run needs the rungs, not Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.tuning.callbacks import ClusterSize, Gauges, Presentation, SearchCallback
    from tune_rescon.tuning.coordinator import Coordinator, SearchPlan
    from tune_rescon.tuning.enqueue import enqueue_trial, stop_trials
    from tune_rescon.tuning.folder import SearchFolder, default_storage, write_atomically
    from tune_rescon.tuning.importance import parameter_importance
    from tune_rescon.tuning.mlflow_sync import sync_tracking
    from tune_rescon.tuning.options import (
        RunOptions,
        absolute_storage,
        default_cache_root,
        default_data_root,
        sync_command,
    )
    from tune_rescon.tuning.overview import SearchOverview, list_searches
    from tune_rescon.tuning.prepare import cache_words, evaluation_words, with_store_size
    from tune_rescon.tuning.ray.worker import TrialTask
    from tune_rescon.tuning.reader import Place, read_search
    from tune_rescon.tuning.result import (
        CostModel,
        SearchState,
        StudyResult,
        TrialCost,
        best_trial,
        datasets_of,
        pareto_front,
        repeated,
        sum_up,
    )
    from tune_rescon.tuning.sampler import SearchSampler
    from tune_rescon.tuning.schedulers import (
        MedianRule,
        SuccessiveHalving,
        make_rule,
        rung_levels,
        rungs,
    )
    from tune_rescon.tuning.search import run_search
    from tune_rescon.tuning.search_storage import find_search
    from tune_rescon.tuning.stopping_rule import Decision, Observation, StoppingRule, Verdict
    from tune_rescon.tuning.study import StudyRecord
    from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "ClusterSize",
    "Coordinator",
    "CostModel",
    "Decision",
    "Gauges",
    "MedianRule",
    "Observation",
    "Place",
    "Presentation",
    "RunOptions",
    "SearchCallback",
    "SearchFolder",
    "SearchOverview",
    "SearchPlan",
    "SearchSampler",
    "SearchState",
    "StoppingRule",
    "StudyRecord",
    "StudyResult",
    "SuccessiveHalving",
    "TrialCost",
    "TrialRecord",
    "TrialTask",
    "Verdict",
    "absolute_storage",
    "best_trial",
    "cache_words",
    "check_this_machine",
    "datasets_of",
    "default_cache_root",
    "default_data_root",
    "default_storage",
    "enqueue_trial",
    "evaluation_words",
    "find_search",
    "list_searches",
    "machine_words",
    "make_rule",
    "parameter_importance",
    "pareto_front",
    "read_search",
    "repeated",
    "run_search",
    "rung_levels",
    "rungs",
    "stop_trials",
    "sum_up",
    "sync_command",
    "sync_tracking",
    "with_store_size",
    "write_atomically",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ClusterSize": "callbacks",
        "Coordinator": "coordinator",
        "Decision": "stopping_rule",
        "Gauges": "callbacks",
        "MedianRule": "schedulers",
        "Observation": "stopping_rule",
        "Place": "reader",
        "Presentation": "callbacks",
        "CostModel": "result",
        "SearchSampler": "sampler",
        "RunOptions": "options",
        "SuccessiveHalving": "schedulers",
        "SearchFolder": "folder",
        "SearchCallback": "callbacks",
        "SearchOverview": "overview",
        "SearchPlan": "coordinator",
        "SearchState": "result",
        "StoppingRule": "stopping_rule",
        "StudyRecord": "study",
        "StudyResult": "result",
        "TrialCost": "result",
        "TrialRecord": "trial",
        "TrialTask": "ray.worker",
        "Verdict": "stopping_rule",
        "best_trial": "result",
        "cache_words": "prepare",
        "datasets_of": "result",
        "default_cache_root": "options",
        "default_data_root": "options",
        "default_storage": "folder",
        "find_search": "search_storage",
        "evaluation_words": "prepare",
        "rung_levels": "schedulers",
        "list_searches": "overview",
        "check_this_machine": "resources",
        "machine_words": "resources",
        "make_rule": "schedulers",
        "parameter_importance": "importance",
        "pareto_front": "result",
        "enqueue_trial": "enqueue",
        "stop_trials": "enqueue",
        "read_search": "reader",
        "repeated": "result",
        "run_search": "search",
        "rungs": "schedulers",
        "sum_up": "result",
        "absolute_storage": "options",
        "sync_command": "options",
        "sync_tracking": "mlflow_sync",
        "with_store_size": "prepare",
        "write_atomically": "folder",
    },
)
