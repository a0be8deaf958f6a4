"""All that speaks to Ray Tune and Optuna: rungs, the durable record, and the run of a search.

Names are loaded on first use: a dry run needs the rungs, not Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.tuning.coordination.coordinator import Coordinator, SearchPlan
    from tune_rescon.tuning.execution.trial import TrialTask
    from tune_rescon.tuning.gauges import ClusterSize, Gauges
    from tune_rescon.tuning.importance import parameter_importance
    from tune_rescon.tuning.listener import SearchListener
    from tune_rescon.tuning.options import (
        RunOptions,
        absolute_storage,
        default_cache_root,
        default_data_root,
        sync_command,
    )
    from tune_rescon.tuning.preparation import judging_words
    from tune_rescon.tuning.presentation import Presentation
    from tune_rescon.tuning.pricing import Pricing, datasets_of
    from tune_rescon.tuning.proposing.proposer import Proposer
    from tune_rescon.tuning.reading.overview import SearchOverview, list_searches
    from tune_rescon.tuning.reading.search import Place, read_search
    from tune_rescon.tuning.record.folder import SearchFolder, default_storage, write_atomically
    from tune_rescon.tuning.record.study import StudyRecord
    from tune_rescon.tuning.record.summary import TrialSummary
    from tune_rescon.tuning.result import (
        SearchState,
        StudyResult,
        TrialCost,
        best_trial,
        pareto_front,
        repeated,
    )
    from tune_rescon.tuning.rules.ladder import ladder_levels, make_rule
    from tune_rescon.tuning.rules.median import MedianRule
    from tune_rescon.tuning.rules.rungs import RungLadder, rungs
    from tune_rescon.tuning.rules.stopping import Decision, Observation, StoppingRule, Verdict
    from tune_rescon.tuning.runner import run_search
    from tune_rescon.tuning.store.search_store import find_search
    from tune_rescon.tuning.stored_side import cache_words, with_store_size
    from tune_rescon.tuning.summing_up import sum_up
    from tune_rescon.tuning.sync import sync_tracking

__all__ = [
    "ClusterSize",
    "Coordinator",
    "Decision",
    "Gauges",
    "MedianRule",
    "Observation",
    "Place",
    "Presentation",
    "Pricing",
    "Proposer",
    "RunOptions",
    "RungLadder",
    "SearchFolder",
    "SearchListener",
    "SearchOverview",
    "SearchPlan",
    "SearchState",
    "StoppingRule",
    "StudyRecord",
    "StudyResult",
    "TrialCost",
    "TrialSummary",
    "TrialTask",
    "Verdict",
    "absolute_storage",
    "best_trial",
    "cache_words",
    "datasets_of",
    "default_cache_root",
    "default_data_root",
    "default_storage",
    "find_search",
    "judging_words",
    "ladder_levels",
    "list_searches",
    "make_rule",
    "parameter_importance",
    "pareto_front",
    "read_search",
    "repeated",
    "run_search",
    "rungs",
    "sum_up",
    "sync_command",
    "sync_tracking",
    "with_store_size",
    "write_atomically",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ClusterSize": "gauges",
        "Coordinator": "coordination.coordinator",
        "Decision": "rules.stopping",
        "Gauges": "gauges",
        "MedianRule": "rules.median",
        "Observation": "rules.stopping",
        "Place": "reading.search",
        "Presentation": "presentation",
        "Pricing": "pricing",
        "Proposer": "proposing.proposer",
        "RunOptions": "options",
        "RungLadder": "rules.rungs",
        "SearchFolder": "record.folder",
        "SearchListener": "listener",
        "SearchOverview": "reading.overview",
        "SearchPlan": "coordination.coordinator",
        "SearchState": "result",
        "StoppingRule": "rules.stopping",
        "StudyRecord": "record.study",
        "StudyResult": "result",
        "TrialCost": "result",
        "TrialSummary": "record.summary",
        "TrialTask": "execution.trial",
        "Verdict": "rules.stopping",
        "best_trial": "result",
        "cache_words": "stored_side",
        "datasets_of": "pricing",
        "default_cache_root": "options",
        "default_data_root": "options",
        "default_storage": "record.folder",
        "find_search": "store.search_store",
        "judging_words": "preparation",
        "ladder_levels": "rules.ladder",
        "list_searches": "reading.overview",
        "make_rule": "rules.ladder",
        "parameter_importance": "importance",
        "pareto_front": "result",
        "read_search": "reading.search",
        "repeated": "result",
        "run_search": "runner",
        "rungs": "rules.rungs",
        "sum_up": "summing_up",
        "absolute_storage": "options",
        "sync_command": "options",
        "sync_tracking": "sync",
        "with_store_size": "stored_side",
        "write_atomically": "record.folder",
    },
)
