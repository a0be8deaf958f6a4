"""What is known of a running search: filled by its events, each at the same cost, and shown as a snapshot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space
from tune_rescon.tuning import ClusterSize, TrialRecord, rung_levels

__all__ = [
    "Reading",
    "RungCount",
    "SearchState",
    "Snapshot",
    "Survival",
    "seconds_left",
]


#: From simulated searches of 120 and of 400 trials on eight slots: 1 says too much at first, 8 too little.
BELIEF: Final = 3


class Survival:
    """Counts of how far trials came and where they ended; to count costs the same, however many there are."""

    def __init__(self, levels: Sequence[int], *, reduction_factor: int) -> None:
        """Nothing is known yet; ``levels`` are the rungs, epochs, of which the last is the last epoch."""
        self._rungs = frozenset(levels[:-1])
        self._factor = reduction_factor
        self._came = [0] * (levels[-1] + 1)
        self._ended = [0] * (levels[-1] + 1)

    def came(self, epoch: int) -> None:
        """A trial has reported ``epoch``; 0: it has begun."""
        self._came[epoch] += 1

    def ended(self, epoch: int) -> None:
        """A trial has ended, or pauses, after its ``epoch``."""
        self._ended[epoch] += 1

    def went_on(self, epoch: int) -> None:
        """A trial that paused after ``epoch`` was promoted."""
        self._ended[epoch] -= 1

    def at(self, epoch: int) -> tuple[int, int]:
        """Trials that came to ``epoch``, and those of them that went on after it."""
        return self._came[epoch], self._came[epoch] - self._ended[epoch]

    def epochs_ahead(self) -> list[float]:
        """The epochs that a trial, going on after epoch 0, 1, ..., is expected to train yet.

        One of ``reduction_factor`` is expected to pass a rung, and that belief counts as much as
        :data:`BELIEF` such rounds of trials: the first ones that come to a rung pass it too easily.

        >>> [round(epochs, 2) for epochs in Survival((1, 3, 9), reduction_factor=3).epochs_ahead()[:4]]
        [2.33, 4.0, 3.0, 6.0]
        """
        ahead = [0.0] * len(self._came)
        for epoch in range(len(ahead) - 2, -1, -1):
            ahead[epoch] = 1 + self._passes(epoch + 1) * ahead[epoch + 1]
        return ahead

    def _passes(self, epoch: int) -> float:
        came, passed = self.at(epoch)
        if epoch in self._rungs:
            return (passed + BELIEF) / (came + BELIEF * self._factor)
        return passed / came if came else 1.0


def seconds_left(
    ahead: Sequence[float],
    *,
    running: Iterable[int],
    unstarted: int,
    slots: int,
    seconds_per_epoch: float,
) -> float:
    """Seconds until the last trial has ended.

    The slots share the work evenly, but no trial is split: the longest of those that run is waited for.

    Args:
        ahead: see :meth:`Survival.epochs_ahead`.
        running: the epochs that each unfinished trial has behind it.
        unstarted: trials to come.
        slots: trials at once.
        seconds_per_epoch: of a slot's time, pauses between epochs included.

    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[1, 2], unstarted=3, slots=2, seconds_per_epoch=10.0)
    60.0
    >>> seconds_left([3.0, 2.0, 1.0, 0.0], running=[0, 2], unstarted=0, slots=2, seconds_per_epoch=10.0)
    30.0
    """
    begun = [ahead[epochs] for epochs in running]
    work = sum(begun) + unstarted * ahead[0]
    return seconds_per_epoch * max(work / slots, max(begun, default=0.0))


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the search's gauges say at one moment."""

    slots: int = 1
    """Trials at once."""
    seconds: float = math.inf
    """Until trials are to end."""
    waiting: int = 0
    """Updates MLflow has kept waiting."""
    cluster: ClusterSize | None = None


@dataclass(frozen=True, kw_only=True)
class RungCount:
    """How many came to a rung, and how many of them went on."""

    epoch: int
    came: int
    went_on: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A search at one moment: all that is drawn."""

    name: str
    metric: str
    total: int
    """Trials in all."""
    last_epoch: int
    ended: Mapping[TrialState, int]
    """Trials by their fate; those that pause too."""
    running: tuple[TrialRecord, ...] = ()
    """In the order of their numbers."""
    speeds: Mapping[int, float] = field(default_factory=dict)
    """Images a second in the last epoch of each running trial that has one behind it."""
    best: TrialRecord | None = None
    """See :func:`tune_rescon.tuning.best_trial`."""
    rungs: tuple[RungCount, ...] = ()
    """Those below the last to which somebody came."""
    seconds_left: float | None = None
    """None: there is nothing to go on yet."""
    compute_hours: float = 0.0
    device: str = "CPU"
    """What these hours are of: ``"GPU"``, ``"CPU"``, or a kind of GPU."""
    waiting: int = 0
    cluster: ClusterSize | None = None

    @property
    def done(self) -> int:
        """Trials that will not go on."""
        return sum(count for state, count in self.ended.items() if state.is_final)


class SearchState:
    """Sums over a search, kept up by its events. For one thread at a time; ``now`` is in seconds."""

    def __init__(self, space: Space, name: str) -> None:
        """Nothing has happened yet in the search ``name`` of ``space``."""
        self._space, self._name = space, name
        self._devices = space.resources_per_trial.devices
        self._levels = rung_levels(space)
        self._survival = Survival(self._levels, reduction_factor=space.scheduler.reduction_factor)
        self._unfinished: dict[int, int] = {}
        self._running: dict[int, TrialRecord] = {}
        self._speeds: dict[int, float] = {}
        self._paused: set[int] = set()
        self._ended: Counter[TrialState] = Counter()
        self._best: TrialRecord | None = None
        self._known = 0
        self._trained = 0.0
        self._pace = _Pace()

    def search_started(self, trials: Sequence[TrialRecord]) -> None:
        """Count what the record holds already."""
        for trial in trials:
            self._begin(trial)
            for epoch in range(1, trial.epochs + 1):
                self._survival.came(epoch)
            self._trained += trial.seconds
            self._compare(trial)
            self._settle(trial)

    def trial_started(self, trial: TrialRecord, now: float) -> bool:
        """Whether it is a trial that runs already, and lost its worker."""
        again = trial.number in self._running
        if trial.number in self._paused:
            self._resume(trial)
        elif trial.number not in self._unfinished:
            self._begin(trial)
        self._running[trial.number] = trial
        self._pace.begins(trial.number, now)
        return again

    def epoch_done(self, trial: TrialRecord, metrics: Mapping[str, float], now: float) -> None:
        """One epoch more."""
        self._survival.came(trial.epochs)
        self._unfinished[trial.number] = trial.epochs
        self._running[trial.number] = trial
        self._speeds[trial.number] = metrics["images_per_second"]
        if math.isfinite(metrics["epoch_seconds"]):
            self._trained += metrics["epoch_seconds"]
        self._pace.reports(trial.number, now)
        self._compare(trial)

    def trial_ended(self, trial: TrialRecord) -> None:
        """It runs no longer: for good, or until it is promoted or resumed."""
        if trial.number in self._paused:
            self._resume(trial)
        elif trial.number not in self._unfinished:
            # One that is closed without having been run.
            self._begin(trial)
        self._running.pop(trial.number, None)
        self._speeds.pop(trial.number, None)
        self._pace.ends(trial.number)
        self._compare(trial)
        self._settle(trial)

    def snapshot(self, reading: Reading) -> Snapshot:
        """All of it now. The cost grows with the running trials and the last epoch, not with all trials."""
        counts = [(level, *self._survival.at(level)) for level in self._levels[:-1]]
        return Snapshot(
            name=self._name,
            metric=self._space.metric.name,
            total=self._space.budget.trials,
            last_epoch=self._levels[-1],
            ended=+self._ended,
            running=tuple(self._running[number] for number in sorted(self._running)),
            speeds=dict(self._speeds),
            best=self._best,
            rungs=tuple(RungCount(epoch=e, came=came, went_on=on) for e, came, on in counts if came),
            seconds_left=self._seconds_left(reading),
            compute_hours=self._trained / 3600 * self._devices,
            device=self._space.resources_per_trial.device,
            waiting=reading.waiting,
            cluster=reading.cluster,
        )

    def _begin(self, trial: TrialRecord) -> None:
        self._known += 1
        self._unfinished[trial.number] = trial.epochs
        self._survival.came(0)

    def _resume(self, trial: TrialRecord) -> None:
        """Its pause is over: it goes on, or is about to be counted as what it ended as."""
        self._paused.remove(trial.number)
        self._ended[TrialState.PAUSED] -= 1
        self._survival.went_on(trial.epochs)
        self._unfinished[trial.number] = trial.epochs

    def _settle(self, trial: TrialRecord) -> None:
        """Count its fate, unless it is yet to go on."""
        if not (trial.state.is_final or trial.state is TrialState.PAUSED):
            return
        del self._unfinished[trial.number]
        self._ended[trial.state] += 1
        self._survival.ended(trial.epochs)
        if trial.state is TrialState.PAUSED:
            self._paused.add(trial.number)

    def _compare(self, trial: TrialRecord) -> None:
        best = self._best
        if not math.isfinite(trial.value):
            return
        if best is None or trial.number == best.number or _order(trial) < _order(best):
            self._best = trial

    def _seconds_left(self, reading: Reading) -> float | None:
        epoch_seconds = self._pace.seconds_per_epoch(at_least=2 * reading.slots)
        if epoch_seconds is None:
            return None
        estimate = seconds_left(
            self._survival.epochs_ahead(),
            running=self._unfinished.values(),
            unstarted=max(self._space.budget.trials - self._known, 0),
            slots=reading.slots,
            seconds_per_epoch=epoch_seconds,
        )
        return min(estimate, max(reading.seconds, 0.0))


def _order(trial: TrialRecord) -> tuple[bool, int, float]:
    return (trial.state is not TrialState.FINISHED, *trial.rank_key())


class _Pace:
    """What an epoch takes of a slot's time: from hand-out or report to report, in this run of the search."""

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
        """None before so many epochs: the first ones also load the data and the libraries."""
        return self._seconds / self._epochs if self._epochs >= at_least else None
