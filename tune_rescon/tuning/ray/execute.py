"""Ray Tune as executor: it places trials, keeps their processes, and says which of those have died."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.worker import TrialTask
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "execute",
]


def execute(
    coordinator: Coordinator,
    *,
    make_task: Callable[[TrialRecord], TrialTask],
    trainable: Callable[[dict[str, Any]], None],
    resources: dict[str, float],
    workers: int,
    concurrent: int,
    turns: DriverLock,
) -> None:
    """Run the coordinator's trials on the Ray that is connected, until it has no more, or no ``turns``.

    A trial is given ``resources`` for each of its ``workers``, all at once: none waits with half of them.
    """
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    from tune_rescon.tuning.ray.preemption import Hearing
    from tune_rescon.tuning.ray.tune_adapter import (
        KeptProcesses,
        LeavingCallback,
        TurnTakingScheduler,
        TurnTakingSearcher,
    )

    # The first is the trial's own; the others are for who joins it (:mod:`.gang`).
    place = tune.PlacementGroupFactory([_positive(resources)] * workers)
    processes = KeptProcesses(coordinator, resources=place, slots=concurrent)
    # Tune's own files are scratch: the record and the checkpoints are the search.
    with tempfile.TemporaryDirectory(prefix="tune_rescon-", ignore_cleanup_errors=True) as scratch:
        # How Tune lets others into the class that it makes of a function.
        trainable.__mixins__ = (Hearing,)  # type: ignore[attr-defined]
        tuner = tune.Tuner(
            tune.with_resources(trainable, place),
            tune_config=tune.TuneConfig(
                search_alg=TurnTakingSearcher(coordinator, make_task, turns),
                scheduler=TurnTakingScheduler(coordinator, turns, processes),
                num_samples=-1,
                # Without it Tune asks a searcher for one trial at a time (ray's _get_max_pending_trials).
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=_directory,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                # Without its JSON files Tune complains that it cannot fetch the metrics at the end.
                callbacks=[JsonLoggerCallback(), LeavingCallback(turns)],
                # The coordinator hands out again. Tune would retry only a trial that runs, not one whose
                # process dies while it is made ready (TuneController._process_trial_failure).
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()


def _positive(resources: dict[str, float]) -> dict[str, float]:
    """Ray takes no zeros."""
    return {name: amount for name, amount in resources.items() if amount}


def _directory(trial: Any) -> str:
    # Tune's own names hold every value of the config and are cut at 130 characters. A trial that was paused
    # is another one to Tune when it goes on.
    return f"trial_{trial.config['number']:04d}_{trial.trial_id}"
