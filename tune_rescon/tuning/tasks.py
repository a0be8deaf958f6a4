"""From a recorded trial to what a worker is told, and to what its network costs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetFacts
from tune_rescon.models import NetworkSpec, count, resolve_network
from tune_rescon.spaces import Space, from_optuna, trial_config
from tune_rescon.tuning.execution.trial import TrialTask
from tune_rescon.tuning.feasibility import memory_signature
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.result import TrialCost
from tune_rescon.tuning.store.search_store import SearchStore

__all__ = ["TaskMaker", "trial_seed"]


@dataclass(frozen=True, kw_only=True)
class TaskMaker:
    """What all trials of one run of a search share."""

    space: Space
    options: RunOptions
    store: SearchStore
    facts: Mapping[str, DatasetFacts]
    """By name, of every dataset a trial may train on."""

    @property
    def devices(self) -> float:
        """What a trial holds: GPUs, or CPU cores where it holds no GPU."""
        resources = self.space.resources_per_trial
        return resources.gpu or float(resources.cpu)

    def config(self, parameters: Mapping[str, Any]) -> TrialConfig:
        """All hyperparameters of a trial with these parameters, as Optuna holds them."""
        return trial_config(self.space, from_optuna(self.space, parameters))

    def same_memory(self, parameters: Mapping[str, Any]) -> Hashable:
        """Equal for parameters whose trials need the same memory."""
        return memory_signature(self.config(parameters))

    def group(self, trial: TrialSummary) -> Hashable:
        """Equal for trials that a rung may compare."""
        name = self.space.scheduler.group_by
        return None if name is None else trial.parameters.get(name)

    def second_objective(self, trial: TrialSummary, epochs: int) -> float:
        """What ``metric.against`` names, of a trial after its first ``epochs``."""
        if self.space.metric.against == "gmacs":
            return self.cost(trial).gmacs
        return trial.seconds_of(epochs) / 3600 * self.devices

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
            device="cuda" if space.resources_per_trial.gpu else "cpu",
        )

    def cost(self, trial: TrialSummary) -> TrialCost:
        """Parameters and multiply-adds, counted without building the network."""
        config = self.config(trial.parameters)
        facts = self.facts[config.dataset or self.space.dataset.name]
        return _counted(resolve_network(config, classes=facts.classes, in_channels=facts.channels))


@lru_cache(maxsize=1024)
def _counted(spec: NetworkSpec) -> TrialCost:
    # Most trials share their network with others, and an epoch's report may ask again.
    cost = count(spec)
    return TrialCost(params_m=cost.parameters / 1e6, gmacs=cost.macs / 1e9)


def trial_seed(search_seed: int, number: int) -> int:
    """The training seed of a trial: the same for the same search seed and number, whatever ran beside it.

    >>> trial_seed(0, 7) == trial_seed(0, 7), trial_seed(0, 7) == trial_seed(0, 8)
    (True, False)
    """
    return int(np.random.SeedSequence((search_seed, number)).generate_state(1)[0])
