"""All that speaks to Ray Tune and Optuna: rungs, the durable record, and the run of a search.

Names are loaded on first use: a dry run needs the rungs, not Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.tuning.coordinator import Coordinator, SearchListener, SearchPlan
    from tune_rescon.tuning.folder import SearchFolder, default_storage, write_atomically
    from tune_rescon.tuning.ladder import ladder_levels, make_rule
    from tune_rescon.tuning.median import MedianRule
    from tune_rescon.tuning.options import RunOptions, default_cache_root, default_data_root
    from tune_rescon.tuning.proposer import Proposer
    from tune_rescon.tuning.record import StudyRecord
    from tune_rescon.tuning.result import StudyResult, TrialCost, best_trial, pareto_front
    from tune_rescon.tuning.rungs import RungLadder, rungs
    from tune_rescon.tuning.runner import run_search
    from tune_rescon.tuning.stopping import Decision, Observation, StoppingRule, Verdict
    from tune_rescon.tuning.store import find_search
    from tune_rescon.tuning.summary import TrialSummary
    from tune_rescon.tuning.trial import TrialTask

__all__ = [
    "Coordinator",
    "Decision",
    "MedianRule",
    "Observation",
    "Proposer",
    "RunOptions",
    "RungLadder",
    "SearchFolder",
    "SearchListener",
    "SearchPlan",
    "StoppingRule",
    "StudyRecord",
    "StudyResult",
    "TrialCost",
    "TrialSummary",
    "TrialTask",
    "Verdict",
    "best_trial",
    "default_cache_root",
    "default_data_root",
    "default_storage",
    "find_search",
    "ladder_levels",
    "make_rule",
    "pareto_front",
    "run_search",
    "rungs",
    "write_atomically",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Coordinator": "coordinator",
        "Decision": "stopping",
        "MedianRule": "median",
        "Observation": "stopping",
        "Proposer": "proposer",
        "RunOptions": "options",
        "RungLadder": "rungs",
        "SearchFolder": "folder",
        "SearchListener": "coordinator",
        "SearchPlan": "coordinator",
        "StoppingRule": "stopping",
        "StudyRecord": "record",
        "StudyResult": "result",
        "TrialCost": "result",
        "TrialSummary": "summary",
        "TrialTask": "trial",
        "Verdict": "stopping",
        "best_trial": "result",
        "default_cache_root": "options",
        "default_data_root": "options",
        "default_storage": "folder",
        "find_search": "store",
        "ladder_levels": "ladder",
        "make_rule": "ladder",
        "pareto_front": "result",
        "run_search": "runner",
        "rungs": "rungs",
        "write_atomically": "folder",
    },
)
