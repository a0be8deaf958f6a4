"""All that speaks to Ray Tune and Optuna: rungs, the durable record, and the run of a search.

Names are loaded on first use: a dry run needs the rungs, not Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.tuning.coordinator import Coordinator, SearchListener, SearchPlan
    from tune_rescon.tuning.folder import SearchFolder, default_storage, write_atomically
    from tune_rescon.tuning.ladder import ladder_levels
    from tune_rescon.tuning.options import RunOptions, default_cache_root, default_data_root
    from tune_rescon.tuning.record import StudyRecord, TrialSummary
    from tune_rescon.tuning.result import StudyResult, TrialCost, best_trial, pareto_front
    from tune_rescon.tuning.rungs import Decision, RungLadder, Verdict, rungs
    from tune_rescon.tuning.runner import run_search
    from tune_rescon.tuning.trial import TrialTask

__all__ = [
    "Coordinator",
    "Decision",
    "RunOptions",
    "RungLadder",
    "SearchFolder",
    "SearchListener",
    "SearchPlan",
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
    "ladder_levels",
    "pareto_front",
    "run_search",
    "rungs",
    "write_atomically",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Coordinator": "coordinator",
        "Decision": "rungs",
        "RunOptions": "options",
        "RungLadder": "rungs",
        "SearchFolder": "folder",
        "SearchListener": "coordinator",
        "SearchPlan": "coordinator",
        "StudyRecord": "record",
        "StudyResult": "result",
        "TrialCost": "result",
        "TrialSummary": "record",
        "TrialTask": "trial",
        "Verdict": "rungs",
        "best_trial": "result",
        "default_cache_root": "options",
        "default_data_root": "options",
        "default_storage": "folder",
        "ladder_levels": "ladder",
        "pareto_front": "result",
        "run_search": "runner",
        "rungs": "rungs",
        "write_atomically": "folder",
    },
)
