"""Create a worker's task from a recorded trial."""

from __future__ import annotations

from dataclasses import dataclass

from tune_rescon.config import TrialConfig
from tune_rescon.spaces import Space
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.ray.worker import TrialTask
from tune_rescon.tuning.search_storage import SearchStore
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "TrialTaskFactory",
]


@dataclass(frozen=True, kw_only=True)
class TrialTaskFactory:
    """Creates the tasks of trials from the settings that all trials of one run of a search share."""

    space: Space
    options: RunOptions
    store: SearchStore

    def task(self, trial: TrialRecord) -> TrialTask:
        """Create the worker's task for a trial."""
        space, options, origin = self.space, self.options, trial.origin
        assert origin is not None, "a resume is refused while an unfinished trial has no configuration"
        config = TrialConfig.from_dict(origin.config)
        return TrialTask(
            number=trial.number,
            config=config,
            dataset=space.dataset_config(config.dataset),
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
