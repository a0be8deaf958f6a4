"""One trial of the record, as plain values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from optuna.distributions import BaseDistribution

from tune_rescon.config import TrialConfig, TrialState
from tune_rescon.errors import ConfigError
from tune_rescon.metric_names import MetricAt, watched_metric
from tune_rescon.spaces import Space, from_optuna, place_config, to_optuna, trial_config
from tune_rescon.tuning.stopping.rule import Decision, Observation

__all__ = [
    "FAILED_STATES",
    "INACTIVE",
    "TABLE_COLUMNS",
    "Enqueued",
    "Proposal",
    "TrialOrigin",
    "TrialRecord",
    "best_by_value",
    "by_epoch",
    "find_origin",
    "make_origin",
    "trial_seed",
    "usable_trials",
]


#: The columns that all tables of trials have: trials.csv, the dataframe, and the report's CSV and JSON.
TABLE_COLUMNS: Final = ("trial", "state", "epochs", "value", "best_value", "best_epoch", "seconds")


#: Every field of a configuration, with its default.
_DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(TrialConfig().to_dict())


@dataclass(frozen=True, kw_only=True)
class TrialOrigin:
    """The configuration that a trial runs with, and its source.

    A resumed search may have another space. Code that trains, prices, shows or retrains a trial therefore
    reads the trial's origin instead of the space.
    """

    config: Mapping[str, Any]
    """Every field of the trial's :class:`.TrialConfig`, as plain values."""
    space: int
    """Version of the space that the trial was sampled from, counted from 1: see :mod:`.space_versions`."""
    seed: int
    """The seed of the trial's training."""
    inactive: tuple[str, ...] = ()
    """Parameters of that space that the trial does not have, because their ``when`` condition is false."""

    def to_dict(self) -> dict[str, Any]:
        """Return the origin as a JSON-serializable dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialOrigin:
        """Create an origin from the result of :meth:`to_dict`; JSON's lists become tuples.

        A record of an earlier version of this package lacks later fields. Its trials ran with their defaults.
        """
        config = dict(_DEFAULTS) | {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["config"].items()
        }
        return cls(
            config=config, space=values["space"], seed=values["seed"], inactive=tuple(values["inactive"])
        )


def make_origin(
    space: Space, parameters: Mapping[str, Any], *, version: int, number: int, enqueued: bool = False
) -> TrialOrigin:
    """Return the origin of a trial that was sampled from a version of the space.

    Args:
        space: The version of the space.
        parameters: The active parameters, as Optuna stores them.
        version: The number of the version, counted from 1.
        number: The trial's number. For a drawn trial, the expected number.
        enqueued: Whether another program enqueued the trial.

    Raises:
        ConfigError, KeyError, ValueError: If ``parameters`` did not come from this space.
    """
    return TrialOrigin(
        config=trial_config(space, from_optuna(space, parameters)).to_dict(),
        space=version,
        seed=trial_seed(space.sampler.seed, number, enqueued=enqueued, is_final=space.metric.of_test_images),
        inactive=tuple(name for name in space.parameters if name not in parameters),
    )


def find_origin(space: Space, parameters: Mapping[str, Any], number: int) -> TrialOrigin | None:
    """Return the origin of a trial of the first version of the space; None if the trial is of another space.

    Args:
        space: The first version of the space.
        parameters: The active parameters, as Optuna stores them.
        number: The trial's number.
    """
    try:
        origin = make_origin(space, parameters, version=1, number=number)
    except (ConfigError, KeyError, ValueError):
        return None
    # The versions of this package that recorded no origin had no other seeds.
    return replace(origin, seed=trial_seed(space.sampler.seed, number))


def trial_seed(search_seed: int, number: int, *, enqueued: bool = False, is_final: bool = False) -> int:
    """Return the training seed of a trial.

    The seed depends only on the search seed and the number, not on the trials that run at the same time. If
    another program enqueues a trial while one is drawn, the drawn trial gets a higher number than expected,
    and keeps the seed of the expected one. Enqueued trials therefore have seeds of their own. So have final
    trainings, because one with the seed of the search's winner would repeat the training that won.

    >>> trial_seed(0, 7) == trial_seed(0, 7), trial_seed(0, 7) == trial_seed(0, 8)
    (True, False)
    """
    kind = enqueued + 2 * is_final
    entropy = (search_seed, number, kind) if kind else (search_seed, number)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A new trial that has been sampled but is not in the record yet."""

    params: Mapping[str, Any]
    """The active parameters, as Optuna stores them."""
    distributions: Mapping[str, BaseDistribution]
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    """Attributes that the sampler set on the trial and needs after a resume (a CMA-ES generation, say)."""
    origin: TrialOrigin | None = None
    """The trial's configuration and its source; None only if nothing trains it, as in tests of the record."""
    enqueued: Enqueued | None = None
    """The trial of the study that another program enqueued and that this trial becomes, if any."""


@dataclass(frozen=True, kw_only=True)
class Enqueued:
    """A trial that waits in the study: ``Study.enqueue_trial`` or a dashboard added it."""

    number: int
    params: Mapping[str, Any]
    """The given parameter values, as Optuna stores them; the sampler draws the others."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of the record.

    ``parameters`` contains the active parameters, as Optuna stores them. ``values`` and each series of
    ``history`` have one entry per epoch, starting at epoch 1; an entry is nan if the epoch lacks the metric.
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
    """The file of the trial's best network, relative to the search's folder; None if the trial keeps none."""
    error: str | None = None
    cost: float | None = None
    """The second objective, if the search has one; set when the trial ends."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the trial, in chronological order."""
    decision: Decision | None = None
    """The scheduler's decision after the last epoch."""
    times_ms: tuple[int, ...] = ()
    """The time at which each epoch was recorded, in milliseconds since 1970."""
    devices: tuple[str | None, ...] = ()
    """The kind of device of each epoch: a GPU's name, or ``"CPU"``; None if it is not known.
    If a worker process died before an epoch was recorded, the epoch is recorded when the trial is resumed.
    Its device is then that of the next worker process."""
    device_counts: tuple[float | None, ...] = ()
    """The number of GPUs, or of CPU cores, that the trial had in each epoch; None if it is not recorded. A
    resumed search may give its trials another number."""
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    """See :attr:`Proposal.sampler_state`."""
    origin: TrialOrigin | None = None
    """The configuration that the trial runs with. None if it is not known, because an earlier version
    recorded the trial and ``space.yaml`` was edited after that."""
    failed_in: int | None = None
    """The version of the space with whose resources the trial ran out of memory. None if it did not, or an
    earlier version of this package recorded it."""
    at: MetricAt = "last"
    """``metric.at`` of the search: which epoch's metric is :attr:`value`."""

    @property
    def epochs(self) -> int:
        """Number of epochs reported so far."""
        return len(self.values)

    @property
    def curve(self) -> tuple[float, ...]:
        """The metric by which the trial can be followed: see :func:`.watched_metric`."""
        watched = watched_metric(self.metric)
        return self.values if watched == self.metric else self.history.get(watched, ())

    @property
    def last_value(self) -> float:
        """The metric after the last reported epoch; nan before the first."""
        return self.values[-1] if self.values else math.nan

    @property
    def value(self) -> float:
        """The objective, by which trials are ranked: the metric at :attr:`value_epoch`.

        It is nan before the first epoch. It is also nan if the metric of the last epoch is not finite,
        because the trial has then diverged.
        """
        return self.values[self.value_epoch - 1] if self.values else math.nan

    @property
    def value_epoch(self) -> int:
        """The epoch (from 1) of :attr:`value`, whose network is in ``best.ckpt``; 0 before epoch 1."""
        chooses = self.at == "best" and math.isfinite(self.last_value)
        return self.best_epoch if chooses else self.epochs

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the best finite value, the first one of equals; 0 if no value is finite."""
        finite = [epoch for epoch, value in enumerate(self.values, 1) if math.isfinite(value)]
        # max and min return the first of equal values.
        best = max if self.maximize else min
        return best(finite, key=lambda epoch: self.values[epoch - 1], default=0)

    @property
    def out_of_patience(self) -> bool:
        """True if the metric has not become better for as many epochs as the trial's ``patience``.

        A metric that only the last epoch has does not count.
        """
        patience = 0 if self.origin is None else int(self.origin.config.get("patience", 0))
        return 0 < patience <= self.epochs - self.best_epoch and self.best_epoch > 0

    @property
    def best_value(self) -> float:
        """The metric at :attr:`best_epoch`; nan if no value is finite."""
        return self.values[self.best_epoch - 1] if self.best_epoch else math.nan

    @property
    def seconds(self) -> float:
        """Seconds spent in the reported epochs (training, validation and checkpoint)."""
        return math.fsum(filter(math.isfinite, self.history.get("epoch_seconds", ())))

    @property
    def start_seconds(self) -> float | None:
        """When the trial started, in seconds since 1970; None if that is not known.

        :attr:`started` is a local time, which stands for two moments in the hour that is repeated when summer
        time ends. It is the later one, unless the first epoch had begun by then.
        """
        if self.started is None:
            return None
        later = self.started.replace(fold=1).timestamp()
        is_repeated = bool(self.times_ms) and later <= self.times_ms[0] / 1000 - self._logged(
            "epoch_seconds", 1, 0.0
        )
        return later if is_repeated else self.started.timestamp()

    @property
    def end_seconds(self) -> float | None:
        """When the trial ended, in seconds since 1970; None if it has not ended.

        In the hour that is repeated when summer time ends, the time of the last epoch shows which of the two
        moments :attr:`ended` is.
        """
        if self.ended is None:
            return None
        end = self.ended.timestamp()
        # A database may round the end of a trial to seconds.
        is_repeated = bool(self.times_ms) and self.times_ms[-1] / 1000 > end + 60
        return self.ended.replace(fold=1).timestamp() if is_repeated else end

    def device_seconds(self, devices: float) -> tuple[float, ...]:
        """Return each epoch's seconds times its number of devices; 0 for an epoch without seconds.

        Args:
            devices: The number of devices for epochs whose own number is not recorded.
        """
        counts = itertools.chain(self.device_counts, itertools.repeat(None))
        return tuple(
            seconds * (devices if count is None else count) if math.isfinite(seconds) else 0.0
            for seconds, count in zip(self.history.get("epoch_seconds", ()), counts, strict=False)
        )

    def config(self, space: Space) -> TrialConfig | None:
        """Return all hyperparameters of the trial; None if they are not known.

        Args:
            space: The search's space. It is used only if the record lacks the trial's configuration; the
                trial is then assumed to be sampled from this space.
        """
        origin = self.origin or find_origin(space, self.parameters, self.number)
        return None if origin is None else TrialConfig.from_dict(origin.config)

    def parameters_in(self, space: Space, first: Space) -> dict[str, Any] | None:
        """Return the trial's parameters in a space, as Optuna stores them; None if it does not contain them.

        Args:
            space: The space, which may differ from the trial's.
            first: The first version of the trial's space. It is used only if the record lacks the trial's
                configuration.
        """
        origin = self.origin or find_origin(first, self.parameters, self.number)
        sampled = place_config(space, origin.config).sampled if origin else None
        return None if sampled is None else to_optuna(sampled)

    def setting(self, name: str, default: Any = None) -> Any:
        """Return the value of a hyperparameter in this trial, as Optuna stores it.

        Returns ``default`` if the trial does not have the parameter, or its configuration is not known.
        """
        if name in self.parameters or self.origin is None or name in self.origin.inactive:
            return self.parameters.get(name, default)
        return to_optuna({name: self.origin.config.get(name, default)})[name]

    def row(self) -> dict[str, Any]:
        """Return the trial's :data:`TABLE_COLUMNS`; ``seconds`` is rounded to milliseconds."""
        values = (
            *(self.number, self.state.value, self.epochs, self.value, self.best_value, self.best_epoch),
            round(self.seconds, 3),
        )
        return dict(zip(TABLE_COLUMNS, values, strict=True))

    def extended(self, metrics: Mapping[str, float]) -> TrialRecord:
        """Return a copy of the trial with one more epoch."""
        nothing = (math.nan,) * self.epochs
        history = {
            name: (*self.history.get(name, nothing), metrics.get(name, math.nan))
            for name in {**self.history, **metrics}
        }
        return replace(self, values=(*self.values, metrics.get(self.metric, math.nan)), history=history)

    def observation(self, epoch: int, *, group: Hashable = None, cost: float = 0.0) -> Observation:
        """Return what a stopping rule sees of an epoch.

        Args:
            epoch: The epoch, counted from 1.
            group: Trials of different groups are not compared.
            cost: The second objective after this epoch.
        """
        return Observation(
            number=self.number,
            epoch=epoch,
            value=self.curve[epoch - 1],
            group=group,
            cost=cost,
            tie_breaker=self._logged("val_loss", epoch, math.inf),
            seconds=self._logged("epoch_seconds", epoch, 0.0),
        )

    def _logged(self, metric: str, epoch: int, default: float) -> float:
        """Return a metric of an epoch, or the default if it is missing or not finite."""
        series = self.history.get(metric, ())
        value = series[epoch - 1] if epoch <= len(series) else math.nan
        return value if math.isfinite(value) else default

    def rank_key(self) -> tuple[int, float, float]:
        """Return a sort key; a smaller key is better.

        Trials with more epochs come first, then trials with better values (Optuna's order of PRUNED trials).
        Among equal values, the one with the smaller second objective comes first. Trials whose value
        is not finite come last.
        """
        if not math.isfinite(self.value):
            return (1, 0.0, 0.0)
        cost = math.inf if self.cost is None else self.cost
        return (-self.epochs, -self.value if self.maximize else self.value, cost)


#: The value that files and MLflow show for a parameter that a trial does not have. MLflow's parallel
#: coordinates drop runs that lack a parameter.
INACTIVE: Final = "none"

#: States of trials whose training cannot be continued.
FAILED_STATES: Final = (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED)


def best_by_value(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial with the best value, whatever its number of epochs; None if no trial has a value.

    Trials that diverged or failed do not count. Ties are broken by :meth:`TrialRecord.rank_key`, then by the
    lowest number.
    """
    usable = (t for t in trials if t.state not in FAILED_STATES and math.isfinite(t.value))
    return min(
        usable,
        key=lambda t: (-t.value if t.maximize else t.value, t.rank_key(), t.number),
        default=None,
    )


def usable_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that may be the best: those with a finite value that did not diverge or fail.

    A trial that failed keeps no network. If all trials with a value failed, return these.
    """
    evaluated = [trial for trial in trials if trial.best_epoch]
    return [trial for trial in evaluated if trial.state not in FAILED_STATES] or evaluated


def by_epoch(epochs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Return one series per metric of ``epochs``.

    The epochs of a trial may have different metrics, because the trial may have been resumed on another
    device or with another version of this package.

    >>> by_epoch([{"val_loss": 2.0}, {"val_loss": 1.0, "peak_memory_mb": 80.0}])
    {'val_loss': (2.0, 1.0), 'peak_memory_mb': (nan, 80.0)}
    """
    names = dict.fromkeys(name for metrics in epochs for name in metrics)
    return {name: tuple(metrics.get(name, math.nan) for metrics in epochs) for name in names}
