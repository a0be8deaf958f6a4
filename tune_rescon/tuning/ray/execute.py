"""Run trials with Ray Tune, which places them, keeps their worker processes and reports dead ones.

Ray is imported when the trials begin, because a search imports this module before it checks its arguments.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_rescon.config import TrialConfig, trial_name
from tune_rescon.spaces import Space
from tune_rescon.tuning.coordinator import Coordinator
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.worker import TrialTask
from tune_rescon.tuning.search_storage import SearchStore
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "TrialTaskFactory",
    "execute",
]


@dataclass(frozen=True, kw_only=True)
class TrialTaskFactory:
    """Creates the tasks of trials from the settings that all trials of one run of a search share."""

    space: Space
    options: RunOptions
    store: SearchStore
    digests: Mapping[str, str] = field(default_factory=dict)
    """Digest of the images and splits of each dataset, by its name."""

    def task(self, trial: TrialRecord) -> TrialTask:
        """Create the worker's task for a trial."""
        space, options, origin = self.space, self.options, trial.origin
        assert origin is not None, "a resume is refused while an unfinished trial has no configuration"
        config = TrialConfig.from_dict(origin.config)
        dataset = space.dataset_config(config.dataset)
        return TrialTask(
            number=trial.number,
            config=config,
            dataset=dataset,
            images=self.digests.get(dataset.name),
            epochs=space.fidelity.max,
            seed=origin.seed,
            metric=space.metric.name,
            mode=space.metric.mode,
            keep=space.metric.at,
            log=space.metric.log,
            epochs_in_study=trial.epochs,
            checkpoint_dir=str(self.store.checkpoint_dir(trial.number)),
            checkpoint_url=self.store.checkpoint_url(trial.number),
            data_root=str(options.data_root.resolve()),
            cache_root=str(options.cache_root.resolve()),
            threads=space.resources_per_trial.cpu,
            workers=space.resources_per_trial.workers,
            device="cuda" if space.resources_per_trial.gpus else "cpu",
        )


def execute(
    coordinator: Coordinator,
    *,
    make_task: Callable[[TrialRecord], TrialTask],
    trainable: Callable[[dict[str, Any]], None],
    resources: dict[str, float],
    workers: int,
    concurrent: int,
    lock: DriverLock,
) -> None:
    """Run the coordinator's trials on the connected Ray until no trials are left or the ``lock`` is closed.

    A trial gets the resources of all its processes at once, so no trial waits while it holds half of them.

    Args:
        coordinator: The source of the trials, which also decides when each trial stops.
        make_task: Creates a worker's description of a trial.
        trainable: The function that a worker runs.
        resources: The resources of each process of a trial, by Ray's names.
        workers: World size: the number of processes that train one trial.
        concurrent: Number of trials that run at once.
        lock: The lock on the coordinator and the record.
    """
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    from tune_rescon.tuning.ray.preemption import SignalHandlerMixin
    from tune_rescon.tuning.ray.tune_adapter import (
        AbortCallback,
        ActorReuse,
        LockedScheduler,
        LockedSearcher,
    )

    # The first bundle is for the trial's own process, the others are for its peers (:mod:`.multi_process`).
    placement_group = tune.PlacementGroupFactory([_positive(resources)] * workers)
    processes = ActorReuse(coordinator, resources=placement_group, slots=concurrent)
    # Tune's own files are temporary: the state of the search is in the record and the checkpoints.
    with tempfile.TemporaryDirectory(prefix="tune_rescon-", ignore_cleanup_errors=True) as scratch:
        # Tune adds these mixins to the class that it creates from a function.
        trainable.__mixins__ = (SignalHandlerMixin,)  # type: ignore[attr-defined]
        tuner = tune.Tuner(
            tune.with_resources(trainable, placement_group),
            tune_config=tune.TuneConfig(
                search_alg=LockedSearcher(coordinator, make_task, lock),
                scheduler=LockedScheduler(coordinator, lock, processes),
                num_samples=-1,
                # Without this limit, Tune requests one trial at a time (ray's _get_max_pending_trials).
                max_concurrent_trials=concurrent,
                reuse_actors=True,
                trial_dirname_creator=_directory,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                # Without its JSON files, Tune reports at the end that it cannot fetch the metrics.
                callbacks=[JsonLoggerCallback(), AbortCallback(lock)],
                # The coordinator retries trials. Tune would retry only a running trial, not one whose process
                # dies while it is being set up (TuneController._process_trial_failure).
                failure_config=tune.FailureConfig(max_failures=0),
                verbose=0,
            ),
        )
        tuner.fit()


def _positive(resources: dict[str, float]) -> dict[str, float]:
    """Return the nonzero resources, because Ray does not accept zeros."""
    return {name: amount for name, amount in resources.items() if amount}


def _directory(trial: Any) -> str:
    # Tune's own names contain every value of the config and are cut at 130 characters. The name has Tune's
    # trial id because a paused trial is a new Tune trial when it continues.
    return f"{trial_name(trial.config['number'])}_{trial.trial_id}"
