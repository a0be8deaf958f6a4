"""The state of a running search: events update it at a constant cost, and a snapshot of it is drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.reporting.formatting import device_hours_unit
from tune_rescon.reporting.hours import hours_by_unit, named_device
from tune_rescon.spaces import Space
from tune_rescon.tuning import ClusterSize, TrialRecord, best_trial, possible_rungs
from tune_rescon.tuning.stopping.auto_messages import planned_epochs
from tune_rescon.tuning.trial import FAILED_STATES

__all__ = [
    "GaugeValues",
    "LiveTotals",
    "RungCount",
    "Snapshot",
    "Survival",
    "seconds_left",
]


#: Weight of the prior that one of ``reduction_factor`` trials passes a rung, in groups of that many trials.
#: In simulated searches of 120 and of 400 trials on eight slots, a weight of 1 estimated too many epochs at
#: first, and 8 too few.
PRIOR_WEIGHT: Final = 3


class Survival:
    """Counts for each epoch how many trials reached it and how many ended there.

    The cost of an update does not grow with the number of trials.
    """

    def __init__(self, rungs: Sequence[int], *, reduction_factor: int) -> None:
        """Start without trials. ``rungs`` are in epochs; the last one is the last epoch."""
        self._rungs = frozenset(rungs[:-1])
        self._factor = reduction_factor
        self._reached = [0] * (rungs[-1] + 1)
        self._ended = [0] * (rungs[-1] + 1)

    def reached(self, epoch: int) -> None:
        """Count a trial that reported ``epoch``, or that started if ``epoch`` is 0."""
        self._reached[epoch] += 1

    def ended(self, epoch: int) -> None:
        """Count a trial that ended, or paused, after ``epoch``."""
        self._ended[epoch] += 1

    def continued(self, epoch: int) -> None:
        """Count a trial that continues after it paused at ``epoch``."""
        self._ended[epoch] -= 1

    def counts(self, epoch: int) -> tuple[int, int]:
        """Return how many trials reached ``epoch``, and how many of them continued after it."""
        return self._reached[epoch], self._reached[epoch] - self._ended[epoch]

    def epochs_ahead(self) -> list[float]:
        """Return the expected remaining epochs of a trial that continues after epoch 0, 1, ....

        The probability of passing a rung is estimated from the trials that reached it and a prior of one in
        ``reduction_factor``: see :data:`PRIOR_WEIGHT`. The first trials that reach a rung pass it too easily.

        >>> [round(epochs, 2) for epochs in Survival((1, 3, 9), reduction_factor=3).epochs_ahead()[:4]]
        [2.33, 4.0, 3.0, 6.0]
        """
        ahead = [0.0] * len(self._reached)
        for epoch in range(len(ahead) - 2, -1, -1):
            ahead[epoch] = 1 + self._passing_share(epoch + 1) * ahead[epoch + 1]
        return ahead

    def _passing_share(self, epoch: int) -> float:
        reached, passed = self.counts(epoch)
        if epoch in self._rungs:
            return (passed + PRIOR_WEIGHT) / (reached + PRIOR_WEIGHT * self._factor)
        return passed / reached if reached else 1.0


def seconds_left(
    ahead: Sequence[float],
    *,
    running: Iterable[int],
    unstarted: int,
    slots: int,
    seconds_per_epoch: float,
) -> float:
    """Return the estimated seconds until the last trial has ended.

    The slots share the work evenly. A trial cannot be split, so the estimate is at least the time of the
    longest running trial.

    Args:
        ahead: the expected remaining epochs: see :meth:`Survival.epochs_ahead`.
        running: the number of epochs that each unfinished trial has trained.
        unstarted: number of trials that have not started.
        slots: number of trials that run at once.
        seconds_per_epoch: seconds of a slot per epoch, including the pauses between epochs.

    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[1, 2], unstarted=3, slots=2, seconds_per_epoch=10.0)
    60.0
    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[0, 2], unstarted=0, slots=2, seconds_per_epoch=10.0)
    30.0
    """
    begun = [ahead[epochs] for epochs in running]
    work = sum(begun) + unstarted * ahead[0]
    return seconds_per_epoch * max(work / slots, max(begun, default=0.0))


@dataclass(frozen=True, kw_only=True)
class GaugeValues:
    """The values of the search's :class:`tune_rescon.tuning.Gauges` at one time."""

    slots: int = 1
    """Number of trials that run at once."""
    seconds: float = math.inf
    """Seconds until all trials are stopped."""
    pending_updates: int = 0
    """Number of updates that wait for MLflow."""
    cluster: ClusterSize | None = None


@dataclass(frozen=True, kw_only=True)
class RungCount:
    """How many trials reached a rung, and how many of them continued after it."""

    epoch: int
    reached: int
    continued: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of a search at one time: everything that is drawn."""

    name: str
    metric: str
    total: int
    """Number of trials in the budget, or of those that have begun if a resume has lowered the budget."""
    last_epoch: int
    ended: Mapping[TrialState, int]
    """Number of trials by state, including the paused ones."""
    running: tuple[TrialRecord, ...] = ()
    """The running trials, in the order of their numbers."""
    speeds: Mapping[int, float] = field(default_factory=dict)
    """Images/s in the last epoch of each running trial that has completed one."""
    shares: Mapping[int, float] = field(default_factory=dict)
    """Trained share of the current epoch of each running trial, for long epochs."""
    best: TrialRecord | None = None
    """See :func:`tune_rescon.tuning.best_trial`."""
    rungs: tuple[RungCount, ...] = ()
    """Rungs below the last that at least one trial has reached."""
    seconds_left: float | None = None
    """Estimated seconds until the search ends; None: not enough epochs have been measured yet."""
    hours: Mapping[str, float] = field(default_factory=dict)
    """The device-hours of all trials, by their unit."""
    pending_updates: int = 0
    cluster: ClusterSize | None = None

    @property
    def done(self) -> int:
        """Number of trials that will not continue."""
        return sum(count for state, count in self.ended.items() if state.is_final)


class LiveTotals:
    """Totals of a search, updated by its events. Not thread-safe. Each ``now`` is a time in seconds."""

    def __init__(self, space: Space, name: str) -> None:
        """Start the totals of the search ``name`` of ``space``, without any event."""
        self._space, self._name = space, name
        self._devices = space.resources_per_trial.devices
        self._levels = possible_rungs(space)
        self._survival = Survival(self._levels, reduction_factor=space.scheduler.reduction_factor)
        self._unfinished: dict[int, int] = {}
        self._running: dict[int, TrialRecord] = {}
        self._speeds: dict[int, float] = {}
        self._shares: dict[int, float] = {}
        self._paused: set[int] = set()
        self._ended: Counter[TrialState] = Counter()
        self._best: TrialRecord | None = None
        self._newest: dict[int, TrialRecord] = {}
        self._started = 0
        self._unit = device_hours_unit(space.resources_per_trial.device)
        self._hours: dict[str, float] = {self._unit: 0.0}
        self._epochs = 0
        self._planned = planned_epochs(space) if space.scheduler.type == "auto" else None
        self._pace = _Pace()

    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """Count the trials that are already in the record."""
        device = named_device(trials, self._space.resources_per_trial.device)
        self._hours = hours_by_unit(trials, device=device, devices=self._devices)
        self._unit = device_hours_unit(device)
        for trial in trials:
            self._begin(trial)
            for epoch in range(1, trial.epochs + 1):
                self._survival.reached(epoch)
            self._epochs += trial.epochs
            self._compare(trial)
            self._count_end(trial)

    def on_trial_start(self, trial: TrialRecord, now: float) -> bool:
        """Count a started trial. Return True if it was already running: its worker died."""
        is_restart = trial.number in self._running
        if trial.number in self._paused:
            self._resume(trial)
        elif trial.number not in self._unfinished:
            self._begin(trial)
        self._running[trial.number] = trial
        self._pace.begins(trial.number, now)
        return is_restart

    def on_progress(self, trial: TrialRecord, share: float) -> None:
        """Keep the share of its epoch that a trial has trained."""
        self._shares[trial.number] = share

    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], now: float) -> None:
        """Count a completed epoch.

        Args:
            trial: the trial after the epoch.
            metrics: the metrics of the epoch.
            now: the current time in seconds.
        """
        self._shares.pop(trial.number, None)
        self._survival.reached(trial.epochs)
        self._epochs += 1
        self._unfinished[trial.number] = trial.epochs
        self._running[trial.number] = trial
        self._speeds[trial.number] = metrics["images_per_second"]
        if math.isfinite(metrics["epoch_seconds"]):
            self._hours[self._unit] += metrics["epoch_seconds"] * self._devices / 3600
        self._pace.reports(trial.number, now)
        self._compare(trial)

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Count a trial that stopped running, either for good or until it is promoted or resumed."""
        if trial.number in self._paused:
            self._resume(trial)
        elif trial.number not in self._unfinished:
            # The trial was closed without having run.
            self._begin(trial)
        self._running.pop(trial.number, None)
        self._speeds.pop(trial.number, None)
        self._shares.pop(trial.number, None)
        self._pace.ends(trial.number)
        self._compare(trial)
        self._count_end(trial)

    def snapshot(self, gauges: GaugeValues) -> Snapshot:
        """Return the current state.

        The cost grows with the number of running trials and the last epoch, not with the total number of
        trials.
        """
        counts = [(level, *self._survival.counts(level)) for level in self._levels[:-1]]
        if self._space.scheduler.type == "auto":
            # The given rungs are only candidates. The rungs in use are those at which trials paused.
            counts = [
                (level, reached, continued) for level, reached, continued in counts if continued < reached
            ]
        return Snapshot(
            name=self._name,
            metric=self._space.metric.name,
            total=max(self._space.budget.trials, self._started),
            last_epoch=self._levels[-1],
            ended=+self._ended,
            running=tuple(self._running[number] for number in sorted(self._running)),
            speeds=dict(self._speeds),
            shares=dict(self._shares),
            best=self._winner(),
            rungs=tuple(
                RungCount(epoch=level, reached=reached, continued=continued)
                for level, reached, continued in counts
                if reached
            ),
            seconds_left=self._seconds_left(gauges),
            hours=dict(self._hours),
            pending_updates=gauges.pending_updates,
            cluster=gauges.cluster,
        )

    def _begin(self, trial: TrialRecord) -> None:
        self._started += 1
        self._unfinished[trial.number] = trial.epochs
        self._survival.reached(0)

    def _resume(self, trial: TrialRecord) -> None:
        """End the pause of a trial, which continues or has ended."""
        self._paused.remove(trial.number)
        self._ended[TrialState.PAUSED] -= 1
        self._survival.continued(trial.epochs)
        self._unfinished[trial.number] = trial.epochs

    def _count_end(self, trial: TrialRecord) -> None:
        """Count the state of a trial that ended or paused. An interrupted trial is not counted."""
        if not (trial.state.is_final or trial.state is TrialState.PAUSED):
            return
        del self._unfinished[trial.number]
        self._ended[trial.state] += 1
        self._survival.ended(trial.epochs)
        if trial.state is TrialState.PAUSED:
            self._paused.add(trial.number)

    def _compare(self, trial: TrialRecord) -> None:
        self._newest[trial.number] = trial
        best = self._best
        has_value = math.isfinite(trial.value)
        if best is not None and trial.number == best.number:
            if has_value and trial.state not in FAILED_STATES:
                self._best = trial
            else:
                # Most of the other trials get no more events, so the next best is chosen now.
                others = (other for other in self._newest.values() if math.isfinite(other.value))
                self._best = min(others, key=_rank, default=None)
        elif has_value and (best is None or _rank(trial) < _rank(best)):
            self._best = trial

    def _winner(self) -> TrialRecord | None:
        if not self._space.metric.of_test_images:
            return self._best
        # Final trainings are few, and their winner is chosen by the mean over the seeds.
        trials = (self._newest[number] for number in sorted(self._newest))
        return best_trial(tuple(trials), by_mean=True)

    def _seconds_left(self, gauges: GaugeValues) -> float | None:
        epoch_seconds = self._pace.seconds_per_epoch(at_least=2 * gauges.slots)
        if epoch_seconds is None:
            return None
        if self._space.scheduler.type == "auto":
            return self._planned_seconds_left(gauges, epoch_seconds)
        estimate = seconds_left(
            self._survival.epochs_ahead(),
            running=self._unfinished.values(),
            unstarted=max(self._space.budget.trials - self._started, 0),
            slots=gauges.slots,
            seconds_per_epoch=epoch_seconds,
        )
        return min(estimate, max(gauges.seconds, 0.0))

    def _planned_seconds_left(self, gauges: GaugeValues, epoch_seconds: float) -> float | None:
        """Return the seconds until the budget that ``auto`` plans is used."""
        if self._planned is None:
            return max(gauges.seconds, 0.0) if math.isfinite(gauges.seconds) else None
        epochs = max(self._planned - self._epochs, len(self._unfinished))
        return min(epochs * epoch_seconds / gauges.slots, max(gauges.seconds, 0.0))


def _rank(trial: TrialRecord) -> tuple[bool, bool, int, float, float, int]:
    # Of equal trials, the winner is the one with the lowest number, and not the first to end.
    unfinished, failed = trial.state is not TrialState.FINISHED, trial.state in FAILED_STATES
    return (unfinished, failed, *trial.rank_key(), trial.number)


class _Pace:
    """Mean time of an epoch in this run, from a trial's start or previous report to its report."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._seconds = 0.0
        self._epochs = 0

    def begins(self, number: int, now: float) -> None:
        self._since[number] = now

    def reports(self, number: int, now: float) -> None:
        self._seconds += now - self._since.get(number, now)
        self._epochs += 1
        self._since[number] = now

    def ends(self, number: int) -> None:
        self._since.pop(number, None)

    def seconds_per_epoch(self, *, at_least: int) -> float | None:
        """Return the mean, or None before ``at_least`` epochs.

        The first epochs are not representative, because they also load the data and the libraries.
        """
        return self._seconds / self._epochs if self._epochs >= at_least else None
