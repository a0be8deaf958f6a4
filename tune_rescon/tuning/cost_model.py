"""The costs of trials: a network's size, from its configuration, and the device-hours of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.errors import UserError
from tune_rescon.models import ExternalSpec, NetworkDescription, describe_network, network_cost
from tune_rescon.spaces import CategoricalParameter, Space
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["CostModel", "TrialCost", "compute_hours", "datasets_of"]


@dataclass(frozen=True, kw_only=True)
class TrialCost:
    """The cost of a trial's network, computed from its configuration."""

    params_m: float
    """Number of parameters, in millions."""
    gmacs: float
    """Multiply-adds of the forward pass of one image, in billions."""


_UNKNOWN = TrialCost(params_m=math.nan, gmacs=math.nan)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The costs that follow from a space and its datasets alone."""

    space: Space
    datasets: Mapping[str, DatasetInfo]
    """The description of each dataset that a trial may train on, by name; incomplete for some old records."""

    def cost(self, trial: TrialRecord) -> TrialCost:
        """Count the parameters and multiply-adds of a trial's network without training it.

        Both are nan if the trial's images or its network are not known. A network from timm or from a user's
        module is not known if that cannot be imported.
        """
        config = trial.config(self.space)
        return _UNKNOWN if config is None else self.cost_of(config)

    def network(self, config: TrialConfig) -> NetworkDescription | None:
        """Describe the network of a configuration; None if its images are not known."""
        info = self.datasets.get(config.dataset or self.space.dataset.name)
        if info is None:
            return None
        return describe_network(config, classes=info.classes, in_channels=info.channels)

    def cost_of(self, config: TrialConfig) -> TrialCost:
        """Count the parameters and multiply-adds of a configuration's network without building it.

        Both are nan if its images are not known.
        """
        spec = self.network(config)
        if spec is None:
            return _UNKNOWN
        try:
            return _network_cost(spec)
        except UserError:
            if isinstance(spec, ExternalSpec):
                return _UNKNOWN
            raise

    def second_objective(self, trial: TrialRecord, epochs: int) -> float:
        """Return the second objective (``metric.against``) of a trial after its first ``epochs`` epochs."""
        if self.space.metric.against == "gmacs":
            return self.cost(trial).gmacs
        return compute_hours(trial, self.space.resources_per_trial.devices, epochs)


@lru_cache(maxsize=1024)
def _network_cost(spec: NetworkDescription) -> TrialCost:
    # Cached because most trials share their network with others, and each epoch's report may need the cost.
    cost = network_cost(spec)
    return TrialCost(params_m=cost.parameters / 1e6, gmacs=cost.macs / 1e9)


def compute_hours(trial: TrialRecord, devices: float, epochs: int | None = None) -> float:
    """Return the hours of training times the number of GPUs, or of CPU cores if the trial had no GPU.

    Args:
        trial: The trial.
        devices: The number of devices for epochs whose own number is not recorded.
        epochs: The number of epochs to count, from the first one; None counts all.
    """
    return math.fsum(trial.device_seconds(devices)[:epochs]) / 3600


def datasets_of(space: Space) -> tuple[DatasetConfig, ...]:
    """Return every dataset that a trial of the space may train on."""
    searched = space.parameters.get("dataset")
    names = searched.choices if isinstance(searched, CategoricalParameter) else (None,)
    return tuple(space.dataset_config(name) for name in names)
