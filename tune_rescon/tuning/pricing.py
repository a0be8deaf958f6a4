"""What trials of a space are, and what they cost: the same for the run of a search and for who reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tune_rescon.config import DatasetConfig
from tune_rescon.data import DatasetFacts
from tune_rescon.models import NetworkSpec, count, resolve_network
from tune_rescon.spaces import CategoricalParameter, Space
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.result import TrialCost

__all__ = ["Pricing", "datasets_of"]

_UNKNOWN = TrialCost(params_m=math.nan, gmacs=math.nan)


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """What follows from a space and its datasets alone."""

    space: Space
    facts: Mapping[str, DatasetFacts]
    """By name, of every dataset a trial may train on; a reader of an old record may not know them all."""

    @property
    def devices(self) -> float:
        """What a trial holds: GPUs, or CPU cores where it holds no GPU."""
        return self.space.resources_per_trial.devices

    @property
    def device(self) -> str:
        """``"GPU"``, ``"CPU"``, or the kind of GPU that was asked for: what :attr:`devices` counts."""
        return self.space.resources_per_trial.device

    def cost(self, trial: TrialSummary) -> TrialCost:
        """Parameters and multiply-adds, counted, not built; nan where images or network are unknown."""
        config = trial.config(self.space)
        if config is None:
            return _UNKNOWN
        facts = self.facts.get(config.dataset or self.space.dataset.name)
        if facts is None:
            return _UNKNOWN
        return _counted(resolve_network(config, classes=facts.classes, in_channels=facts.channels))

    def second_objective(self, trial: TrialSummary, epochs: int) -> float:
        """What ``metric.against`` names, of a trial after its first ``epochs``."""
        if self.space.metric.against == "gmacs":
            return self.cost(trial).gmacs
        return trial.seconds_of(epochs) / 3600 * self.devices


@lru_cache(maxsize=1024)
def _counted(spec: NetworkSpec) -> TrialCost:
    # Most trials share their network with others, and an epoch's report may ask again.
    cost = count(spec)
    return TrialCost(params_m=cost.parameters / 1e6, gmacs=cost.macs / 1e9)


def datasets_of(space: Space) -> tuple[DatasetConfig, ...]:
    """Every dataset a trial of the space may train on."""
    searched = space.parameters.get("dataset")
    names = searched.choices if isinstance(searched, CategoricalParameter) else (None,)
    return tuple(space.dataset_config(name) for name in names)
