"""One trial as the record has it: plain values for whoever reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np

from tune_rescon.config import MetricAt, TrialConfig, TrialState, watched_metric
from tune_rescon.errors import ConfigError
from tune_rescon.spaces import Space, from_optuna, to_optuna, trial_config
from tune_rescon.tuning.schedulers import Decision

__all__ = [
    "TrialOrigin",
    "TrialRecord",
    "by_epoch",
    "find_origin",
    "make_origin",
    "trial_seed",
]


@dataclass(frozen=True, kw_only=True)
class TrialOrigin:
    """What a trial runs with, and where that came from.

    A resumed search may have another space. Everything that trains, prices, shows or retrains a trial reads
    this instead of the space.
    """

    config: Mapping[str, Any]
    """Every field of its :class:`.TrialConfig`, as plain values."""
    space: int
    """The version of the space it was drawn from, counted from 1: see :mod:`.space_versions`."""
    seed: int
    """Of its training."""
    inactive: tuple[str, ...] = ()
    """Parameters of that space which the trial does not have, because their ``when`` does not hold."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "config": dict(self.config),
            "space": self.space,
            "seed": self.seed,
            "inactive": list(self.inactive),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialOrigin:
        """Back from :meth:`to_dict`; JSON's lists become tuples."""
        config = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["config"].items()
        }
        return cls(
            config=config, space=values["space"], seed=values["seed"], inactive=tuple(values["inactive"])
        )


def make_origin(space: Space, parameters: Mapping[str, Any], *, version: int, number: int) -> TrialOrigin:
    """The origin of trial ``number``, drawn from version ``version`` of the space.

    Args:
        space: that version.
        parameters: the active parameters, as Optuna holds them.
        version: counted from 1.
        number: the trial's.

    Raises:
        KeyError, ValueError: ``parameters`` did not come from this space.
        ConfigError: likewise.
    """
    return TrialOrigin(
        config=trial_config(space, from_optuna(space, parameters)).to_dict(),
        space=version,
        seed=trial_seed(space.sampler.seed, number),
        inactive=tuple(name for name in space.parameters if name not in parameters),
    )


def find_origin(
    space: Space, parameters: Mapping[str, Any], *, version: int, number: int
) -> TrialOrigin | None:
    """:func:`make_origin`; None if ``parameters`` did not come from this space."""
    try:
        return make_origin(space, parameters, version=version, number=number)
    except (ConfigError, KeyError, ValueError):
        return None


def trial_seed(search_seed: int, number: int) -> int:
    """The training seed of a trial: the same for the same search seed and number, whatever ran beside it.

    >>> trial_seed(0, 7) == trial_seed(0, 7), trial_seed(0, 7) == trial_seed(0, 8)
    (True, False)
    """
    return int(np.random.SeedSequence((search_seed, number)).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the record has it.

    ``parameters`` are the active ones, as Optuna holds them. ``values`` and each series of ``history`` are by
    epoch, the first being epoch 1; nan stands where an epoch has no such metric.
    """

    number: int
    state: TrialState
    parameters: Mapping[str, Any]
    metric: str
    maximize: bool
    values: tuple[float, ...]
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None
    mlflow_run_id: str | None = None
    checkpoint: str | None = None
    """The file of its best network, relative to the search's folder; None if it keeps none."""
    error: str | None = None
    cost: float | None = None
    """The second objective, where the search has one; set when the trial ends."""
    notes: tuple[str, ...] = ()
    """What the user should know about it, in the order in which it happened."""
    decision: Decision | None = None
    """What was decided after the last epoch."""
    times_ms: tuple[int, ...] = ()
    """When each epoch was recorded, milliseconds since 1970."""
    devices: tuple[str | None, ...] = ()
    """The kind of device each epoch ran on: a GPU's name, or ``"CPU"``; None where that is not known.
    An epoch recorded only when the trial went on, after its worker had died, has that of the next worker."""
    memory: Mapping[str, Any] = field(default_factory=dict)
    """See :attr:`Proposal.memory`."""
    origin: TrialOrigin | None = None
    """The configuration that the trial runs with. None: not known, because an earlier version recorded the
    trial and ``space.yaml`` was edited since."""
    at: MetricAt = "last"
    """``metric.at`` of the search: which epoch's metric is :attr:`value`."""

    @property
    def epochs(self) -> int:
        """Epochs reported so far."""
        return len(self.values)

    @property
    def curve(self) -> tuple[float, ...]:
        """What it can be followed by, epoch by epoch: see :func:`tune_rescon.config.watched_metric`."""
        watched = watched_metric(self.metric)
        return self.values if watched == self.metric else self.history.get(watched, ())

    @property
    def last_value(self) -> float:
        """The metric after the last reported epoch; nan before the first."""
        return self.values[-1] if self.values else math.nan

    @property
    def value(self) -> float:
        """The objective, by which trials are ranked: the metric at :attr:`value_epoch`.

        nan before the first epoch, and where the last epoch is not finite: the trial has diverged.
        """
        return self.values[self.value_epoch - 1] if self.values else math.nan

    @property
    def value_epoch(self) -> int:
        """The epoch (from 1) of :attr:`value`, whose network ``best.ckpt`` holds; 0 before the first."""
        chooses = self.at == "best" and math.isfinite(self.last_value)
        return self.best_epoch if chooses else self.epochs

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best finite value, the first of equals; 0 if there is none."""
        finite = [(value, -epoch) for epoch, value in enumerate(self.values, 1) if math.isfinite(value)]
        if not finite:
            return 0
        chosen = max(finite) if self.maximize else min(finite, key=lambda pair: (pair[0], -pair[1]))
        return -chosen[1]

    @property
    def best_value(self) -> float:
        """The metric at :attr:`best_epoch`; nan if there is none."""
        return self.values[self.best_epoch - 1] if self.best_epoch else math.nan

    @property
    def seconds(self) -> float:
        """Seconds spent in the reported epochs (training, validation and checkpoint)."""
        return self.seconds_of(self.epochs)

    def seconds_of(self, epochs: int) -> float:
        """Seconds spent in the first ``epochs``."""
        return math.fsum(s for s in self.history.get("epoch_seconds", ())[:epochs] if math.isfinite(s))

    def config(self, space: Space) -> TrialConfig | None:
        """All its hyperparameters; None if they are not known.

        Args:
            space: the search's. Only a trial whose configuration is not in the record is taken to be of it.
        """
        origin = self.origin or find_origin(space, self.parameters, version=1, number=self.number)
        return None if origin is None else TrialConfig.from_dict(origin.config)

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of a hyperparameter in this trial, as Optuna holds it.

        ``default`` where the trial does not have the parameter, or where its configuration is not known.
        """
        if name in self.parameters or self.origin is None or name in self.origin.inactive:
            return self.parameters.get(name, default)
        return to_optuna({name: self.origin.config.get(name, default)})[name]

    def extended(self, metrics: Mapping[str, float]) -> TrialRecord:
        """With one more epoch."""
        nothing = (math.nan,) * self.epochs
        history = {
            name: (*self.history.get(name, nothing), metrics.get(name, math.nan))
            for name in {**self.history, **metrics}
        }
        return replace(self, values=(*self.values, metrics.get(self.metric, math.nan)), history=history)

    def rank_key(self) -> tuple[int, float]:
        """Smaller is better: further first, then the better value (Optuna's order of PRUNED trials)."""
        if not math.isfinite(self.value):
            return (1, 0.0)
        return (-self.epochs, -self.value if self.maximize else self.value)


def by_epoch(epochs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """The metrics of ``epochs`` as a series each.

    Not all epochs of a trial need have the same: it may have gone on on another device, or another version.

    >>> by_epoch([{"val_loss": 2.0}, {"val_loss": 1.0, "peak_memory_mb": 80.0}])
    {'val_loss': (2.0, 1.0), 'peak_memory_mb': (nan, 80.0)}
    """
    names = dict.fromkeys(name for metrics in epochs for name in metrics)
    return {name: tuple(metrics.get(name, math.nan) for metrics in epochs) for name in names}
