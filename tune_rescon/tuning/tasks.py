"""From a recorded trial to what a worker is told."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune_rescon.tuning.execution.trial import TrialTask
from tune_rescon.tuning.feasibility import memory_signature
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.pricing import Pricing
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.store.search_store import SearchStore

__all__ = ["TaskMaker", "trial_seed"]


@dataclass(frozen=True, kw_only=True)
class TaskMaker(Pricing):
    """What all trials of one run of a search share, and with that what a worker is told."""

    options: RunOptions
    store: SearchStore

    def same_memory(self, parameters: Mapping[str, Any]) -> Hashable:
        """Equal for parameters whose trials need the same memory."""
        return memory_signature(self.config(parameters))

    def group(self, trial: TrialSummary) -> Hashable:
        """Equal for trials that a rung may compare."""
        name = self.space.scheduler.group_by
        return None if name is None else trial.parameters.get(name)

    def task(self, trial: TrialSummary) -> TrialTask:
        """What the worker is told."""
        space, options, config = self.space, self.options, self.config(trial.parameters)
        return TrialTask(
            number=trial.number,
            config=config,
            dataset=space.dataset_config(config.dataset),
            epochs=space.fidelity.max,
            seed=trial_seed(space.sampler.seed, trial.number),
            metric=space.metric.name,
            mode=space.metric.mode,
            recorded=trial.epochs,
            checkpoint_dir=str(self.store.checkpoint_dir(trial.number)),
            checkpoint_url=self.store.checkpoint_url(trial.number),
            data_root=str(options.data_root.resolve()),
            cache_root=str(options.cache_root.resolve()),
            threads=space.resources_per_trial.cpu,
            workers=space.resources_per_trial.workers,
            device="cuda" if space.resources_per_trial.gpus else "cpu",
        )


def trial_seed(search_seed: int, number: int) -> int:
    """The training seed of a trial: the same for the same search seed and number, whatever ran beside it.

    >>> trial_seed(0, 7) == trial_seed(0, 7), trial_seed(0, 7) == trial_seed(0, 8)
    (True, False)
    """
    return int(np.random.SeedSequence((search_seed, number)).generate_state(1)[0])
