"""The rule of ``scheduler: {type: auto}``: it divides the budget between new trials and the best paused ones.

A stage is the training between two rungs: stage 0 (screening) trains new trials to the first rung, the final
stage trains paused ones to the last epoch. Every trial is paused at its rung. A free slot goes to the stage
that is furthest behind its share of the budget: stage 0 begins a new trial, a later stage continues its best
paused trial. A share does not depend on how many trials are better, so the best trials are always finished.
The first rung is chosen from the search's own values (:mod:`.first_rung`). Costs are seconds if the budget is
in hours, and epochs otherwise.

All state follows from the recorded values, the numbers of the trials, and the time that is used. A resumed
search therefore decides as one that was not interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tune_rescon.tuning.stopping.budget_plan import SCREENING, UNCONFIRMED_SCREENING, BudgetPlan, stage_shares
from tune_rescon.tuning.stopping.first_rung import (
    PILOTS,
    PROBE_SHARE,
    Agreement,
    Unjudged,
    choose_first_rung,
    first_rungs,
    latest_candidate,
    never_changes,
    rungs_from,
)
from tune_rescon.tuning.stopping.rule import Decision, Observation, Verdict
from tune_rescon.tuning.stopping.trial_table import DIVERGED, ENDED, PAUSED, RUNNING, UNKNOWN, TrialTable

__all__ = ["AutoRule"]

#: No final stage begins before this share of the budget is used.
FINAL_DELAY: Final = 0.05
#: A trial is promoted from the first rung only if it is among the best 1 in PROMOTED_FROM there. A later
#: stage that is behind its share waits for such a trial, until no new trial begins any more. Otherwise the
#: first trials at a rung would finish only because they came first.
PROMOTED_FROM: Final = 4
#: PROMOTED_FROM if no later rung confirms the ranks at the first one.
UNCONFIRMED_PROMOTED_FROM: Final = 2
#: Number of values at the first rung before a trial is promoted.
MIN_VALUES: Final = 6
#: A trial that leads at its rung continues as long as its next stage has used less than this, as a multiple
#: of the stage's share of the whole budget.
LEADERS: Final = 1.5
#: No new trial begins if the budget left is less than CLOSING full trainings, or, with a budget in hours,
#: than CLOSING times the mean time to reach the second rung.
CLOSING: Final = 3.0
#: A trial is promoted only if the time left is enough for this share of the way to its next rung.
MIN_REACHED: Final = 0.2
#: With a budget of trials, the epochs suffice to train at least this number of trials to the end.
MIN_FINISHED: Final = 3
#: Epochs that a trial is expected to use with a budget of trials, as a share of a full training. It sets only
#: how late the latest candidate for the first rung may be.
EPOCHS_PER_TRIAL: Final = 0.2

#: Stands for a new trial, instead of the number of a paused one.
_NEW: Final = -1


@dataclass(kw_only=True)
class AutoRule:
    """Divides a budget between screening and finishing. It is a :class:`.StoppingRule`."""

    low: int
    """The earliest first rung (``fidelity.min``), in epochs."""
    last: int
    """The epoch at which a trial is finished (``fidelity.max``)."""
    maximize: bool
    budget: BudgetPlan
    _elapsed: float = 0.0
    _can_start: bool = True
    _table: TrialTable = field(init=False)
    _rungs: NDArray[np.int64] = field(init=False)
    _planned_epochs: float = field(init=False)
    """The budget in epochs. With a budget in hours, it is known once the first trials have an epoch."""
    reach: int = field(init=False)
    """Number of epochs that one slot can train in the hours of the budget, at the mean cost of an epoch."""
    latest: int | None = field(default=None, init=False)
    """The latest candidate for the first rung, in epochs. None before the first trials have an epoch."""
    agreement: Agreement | None = field(default=None, init=False)
    """The evidence for the first rung. None as long as the first trials have not shown any."""
    _compared: list[int] | None = field(default=None, init=False)
    """The trials by which the first rung was chosen."""

    def __post_init__(self) -> None:
        """Create the empty table of trials."""
        self._table = TrialTable(self.last)
        self.reach = self.last
        self._set_first(self.low)
        trials = self.budget.trials * self.last * EPOCHS_PER_TRIAL
        self._planned_epochs = trials if self.budget.epochs is None else float(self.budget.epochs)
        if self.budget.seconds is None:
            self._find_latest()

    def set_elapsed(self, elapsed: float) -> None:
        """Set the seconds of the budget that are used. Call this before a decision, with a growing value."""
        self._elapsed = elapsed

    def started(self, number: int) -> None:
        """Note that a trial runs: a new trial, a promoted trial, or one that is retried."""
        self._table.set_state(number, RUNNING)

    def judge(self, seen: Observation) -> Verdict:
        """Add the value to the table, and return whether the trial continues."""
        self._record(seen)
        if not math.isfinite(seen.value):
            return Verdict(decision=Decision.DIVERGED)
        if seen.epoch >= self.last:
            self._table.set_state(seen.number, ENDED)
            return Verdict(decision=Decision.FINISH)
        if seen.number in self._unjudged and seen.epoch < (self.latest or self.last):
            return Verdict(decision=Decision.CONTINUE)
        is_rung = seen.epoch in self._rungs or seen.epoch == self.latest
        if not is_rung and not self._yields_slot(seen.epoch):
            return Verdict(decision=Decision.CONTINUE)
        self._table.set_state(seen.number, PAUSED)
        rank, compared = self._table.rank(seen.number, seen.epoch)
        if self._leads(seen, rank, compared) or self._choose() == seen.number:
            self._table.set_state(seen.number, RUNNING)
            return Verdict(decision=Decision.CONTINUE, rung=seen.epoch, rank=rank, compared=compared)
        return Verdict(decision=Decision.PAUSE, rung=seen.epoch, rank=rank, compared=compared)

    def replay(self, seen: Observation) -> None:
        """Record a value without judging the trial."""
        self._record(seen)
        if math.isfinite(seen.value):
            self._table.set_state(seen.number, ENDED if seen.epoch >= self.last else UNKNOWN)

    def record_unchanged(self, seen: Observation, epochs: int) -> None:
        """Record the value of several epochs up to ``seen``. None is a rung or the latest candidate."""
        self._table.add(seen, maximize=self.maximize, timed=self.budget.seconds is not None, epochs=epochs)

    def pause_again(self, number: int) -> bool:
        """Pause a replayed trial again."""
        if not self._table.has_begun(number):
            return False
        self._table.set_state(number, PAUSED)
        return True

    def promote(self, *, force: bool = False) -> int | None:
        """Return the paused trial that is to continue. None if a new trial is to start, or nothing."""
        choice = self._furthest_paused() if force else self._choose()
        return None if choice is None or choice == _NEW else choice

    def may_start(self) -> bool:
        """Return whether a free slot is to get a new trial."""
        return self._choose() == _NEW

    def ended(self, number: int) -> None:
        """Note that a trial has ended. Its values stay, but it can no longer be promoted."""
        if self._table.state(number) == DIVERGED:
            return
        self._table.set_state(number, ENDED)
        self._learn_from(number)

    def no_new_trials(self) -> None:
        """Note that no new trial can start any more. What is left goes to the paused trials."""
        self._can_start = False

    def paused(self) -> tuple[int, ...]:
        """Return the numbers of the paused trials in ascending order."""
        return tuple(int(number) for number in np.flatnonzero(self._table.states == PAUSED))

    @property
    def rungs(self) -> tuple[int, ...]:
        """The current rungs, in epochs."""
        return tuple(map(int, self._rungs))

    @property
    def learns(self) -> bool:
        """True if the budget is large enough to learn the first rung, or that is not known yet."""
        return self.latest is None or self.latest > self.low

    @property
    def is_unconfirmed(self) -> bool:
        """True if no later ranks confirm those at the first rung. Fewer trials then start, and more finish.

        With a budget of trials it is never true, because the number of trials determines the screening.
        """
        return self._is_limited and self.agreement is not None and not self.agreement.is_confirmed

    @property
    def no_rung_judges(self) -> bool:
        """True if no rung judges, because the early ranks are unstable. Trials then train to the end.

        With a budget of trials it is never true, because that would cost many times the plan.
        """
        return self._is_limited and self.agreement is not None and self.agreement.ranks_are_unstable

    # The first rung.

    def _record(self, seen: Observation) -> None:
        self._table.add(seen, maximize=self.maximize, timed=self.budget.seconds is not None)
        self._learn_from(seen.number)

    def _learn_from(self, number: int) -> None:
        """Update the choice of the first rung if this trial is one of those on which the choice depends."""
        if self.latest is None:
            self._find_latest()
        if self.latest is not None and number in self._unjudged:
            self._choose_first()

    def _find_latest(self) -> None:
        """Choose the epoch to which the first trials run unjudged.

        With a budget in hours, the number of epochs in it follows from the first epochs of the trials that
        begin together. It does not change later, so a resumed search has the same probes.
        """
        table, of_slot = self._table, None
        if self.budget.seconds is not None:
            together = range(max(1, min(self._pilots, self.budget.slots)))
            begun = [number for number in together if table.has_begun(number)]
            if not begun or any(n not in begun and table.may_progress(n) for n in together):
                return
            cost = sum(table.first_cost(number) for number in begun) / len(begun)
            self._planned_epochs = self.budget.seconds * self.budget.slots / max(cost, 1e-9)
            of_slot = self._planned_epochs / self.budget.slots
            self.reach = int(min(self.last, max(self.low + 1, of_slot)))
        self.latest = latest_candidate(
            self.low, self.last, pilots=self._pilots, epochs=self._planned_epochs, epochs_of_slot=of_slot
        )
        self._set_first(self.latest)

    def _choose_first(self) -> None:
        """Choose the first rung again, if all of the first trials have reached the latest candidate."""
        table, latest, pilots = self._table, self.latest, range(self._pilots)
        assert latest is not None
        if latest == self.low or any(table.epochs_of(n) < latest and table.may_progress(n) for n in pilots):
            return
        marked = map(int, np.flatnonzero(self._unjudged.marks(len(table))))
        compared = [n for n in marked if table.epochs_of(n) >= latest or table.state(n) == DIVERGED]
        if compared == self._compared:
            return  # their curves up to the latest candidate do not change any more
        self._compared, curves = compared, [table.curve(n, latest) for n in compared]
        candidates = [c for c in first_rungs(self.low, self.last) if c <= latest]
        self.agreement = choose_first_rung(curves, candidates, epochs=SCREENING * self._planned_epochs)
        first = self.agreement.first
        if self.agreement.ranks_are_unstable:
            first = self.last if self.no_rung_judges else latest
        if first != self._rungs[0]:
            self._set_first(first)

    def _set_first(self, first: int) -> None:
        self._rungs = np.array(rungs_from(first, self.last, reach=self.reach))

    @property
    def _pilots(self) -> int:
        return max(1, min(PILOTS, self.budget.trials // 2))

    @property
    def _unjudged(self) -> Unjudged:
        """The trials that reach the latest candidate without being judged."""
        if self.latest is None or self.latest == self.low:
            return Unjudged(pilots=self._pilots, probes=0)
        probes = math.ceil(PROBE_SHARE * self._planned_epochs / self.latest)
        return Unjudged(pilots=self._pilots, probes=probes)

    # The budget.

    @property
    def _is_limited(self) -> bool:
        """True if hours or epochs limit the budget, instead of the number of trials."""
        return self.budget.seconds is not None or self.budget.epochs is not None

    def _left(self) -> float:
        """Return the unused budget: seconds, or epochs that are not reserved for running trials."""
        if self.budget.seconds is not None:
            return self.budget.seconds - self._elapsed
        table = self._table
        committed = (self._goals() - table.epochs)[table.states == RUNNING].sum()
        return self._total() - table.epochs_used - float(committed)

    def _total(self) -> float:
        """Return the budget in epochs. With a budget of trials, it follows from the first rung."""
        if self.budget.epochs is not None:
            return float(self.budget.epochs)
        first = float(self._rungs[0])
        screening = self.budget.trials * first
        finals = MIN_FINISHED * (self.last - first)
        return screening + max(screening * (1 - SCREENING) / SCREENING, finals)

    def _shares(self) -> tuple[float, ...]:
        return stage_shares(len(self._rungs), UNCONFIRMED_SCREENING if self.is_unconfirmed else SCREENING)

    def _goals(self) -> NDArray[np.float64]:
        """Return the next rung of each trial, in epochs."""
        table = self._table
        following = np.minimum(self._rungs_reached(), len(self._rungs) - 1)
        goals: NDArray[np.float64] = self._rungs[following].astype(float)
        if self.latest is not None:
            unjudged = self._unjudged.marks(len(table)) & (table.epochs < self.latest)
            goals[unjudged] = self.latest
        return np.maximum(goals, table.epochs)

    def _rungs_reached(self) -> NDArray[np.int64]:
        """Return for each trial the number of rungs that it has reached."""
        return np.searchsorted(self._rungs, self._table.epochs, side="right")

    # The choice for a free slot.

    def _choose(self) -> int | None:
        """Return a paused trial, :data:`_NEW` for a new trial, or None for nothing."""
        can_start = self._can_start and self._table.trials < self.budget.trials
        left = self._left()
        if can_start and self._table.trials < self._pilots and (left > 0 or not self._is_limited):
            return _NEW
        most = self.budget.max_concurrent(self.last) or math.inf
        if self._is_limited and (left <= 0 or (self._table.states == RUNNING).sum() >= most):
            return None
        best = dict(self._best_paused(left))
        total = self._total() if self.budget.seconds is None else self.budget.seconds
        used = min(max(1 - left / total, 0.0), 1.0)
        costs, shares = self._stage_costs(), list(self._shares())
        if not self._is_limited and not can_start and sum(costs) >= total:
            return None
        if len(shares) > 1:  # the final stage gets nothing before FINAL_DELAY, and its whole share at the end
            shares[-1] *= max(used - FINAL_DELAY, 0.0) / (1 - FINAL_DELAY) / max(used, 1e-9)
        for stage in sorted(
            (stage for stage, share in enumerate(shares) if share > 0),
            key=lambda stage: costs[stage] / shares[stage],
        ):
            if stage == 0:
                if 0 in best:
                    return best[0]
                if can_start and not (best and self._is_closing(left)):
                    return _NEW
            elif stage in best and self._may_continue(best[stage], stage):
                return best[stage]
        return self._fallback(best, can_start=can_start)

    def _may_continue(self, number: int, stage: int) -> bool:
        """Return whether a trial is good enough to begin a stage that is behind its share."""
        if self._table.count(int(self._rungs[0])) < MIN_VALUES:
            return False
        rank, compared = self._table.rank(number, int(self._rungs[stage - 1]))
        return stage == 1 or rank <= max(1, compared // PROMOTED_FROM)

    def _leads(self, seen: Observation, rank: int, compared: int) -> bool:
        """Return whether a trial is the best of enough trials at its rung, and is to continue at once.

        The search then has a good network in hand early. Among n trials in random order, only about log n
        lead when they arrive. :data:`LEADERS` limits this if a sampler makes each trial better than the last.
        """
        first = int(self._rungs[0])
        is_decided = self.latest == self.low or self.agreement is not None
        is_enough = compared >= MIN_VALUES and self._table.count(first) >= MIN_VALUES
        may_lead = is_decided and is_enough and rank == 1 and seen.epoch >= first
        if not may_lead or not self._is_limited or self._left() <= 0:
            return False
        stage = int(np.searchsorted(self._rungs, seen.epoch, side="right"))
        total = self._total() if self.budget.seconds is None else self.budget.seconds * self.budget.slots
        return self._stage_costs()[stage] < LEADERS * self._shares()[stage] * total

    def _fallback(self, best: dict[int, int], *, can_start: bool) -> int | None:
        """Return the choice if the stages that are behind their shares have no trial to continue."""
        if best:
            return best[max(best)]
        if self.budget.seconds is None:
            return None
        furthest = self._furthest_paused()
        return _NEW if furthest is None and can_start else furthest

    def _furthest_unjudged(self) -> int | None:
        """Return the paused trial with the most epochs among those below the first rung, or None.

        If no rung judges, a trial that has learned nothing yet is left out: it makes room for a new one.
        """
        table = self._table
        waiting = np.flatnonzero((table.states == PAUSED) & (self._rungs_reached() == 0))
        if self.no_rung_judges:
            waiting = waiting[~never_changes(table.curves(waiting))]
        return int(waiting[np.argmax(table.epochs[waiting])]) if len(waiting) else None

    def _yields_slot(self, epoch: int) -> bool:
        """Return whether no rung judges, and a trial that is further than ``epoch`` waits for a slot."""
        waiting = self._furthest_unjudged() if self.no_rung_judges else None
        return waiting is not None and self._table.epochs_of(waiting) > epoch

    def _best_paused(self, left: float) -> Iterator[tuple[int, int]]:
        """Yield for each stage the best paused trial that it could continue."""
        table, rungs, first = self._table, self._rungs_reached(), int(self._rungs[0])
        one_in = UNCONFIRMED_PROMOTED_FROM if self.is_unconfirmed else PROMOTED_FROM
        threshold, merits = table.threshold(first, one_in), table.merits(first)
        if (unjudged := self._furthest_unjudged()) is not None:
            yield 0, unjudged
        for stage in range(1, len(self._rungs)):
            waiting = np.flatnonzero((table.states == PAUSED) & (rungs == stage))
            waiting = waiting[merits[waiting] >= threshold]
            if self.budget.seconds is not None:
                way = (self._rungs[stage] - table.epochs[waiting]) * table.costs(waiting)
                waiting = waiting[way * MIN_REACHED <= left]
            if len(waiting):
                yield stage, table.best(waiting, int(self._rungs[stage - 1]))

    def _furthest_paused(self) -> int | None:
        """Return the best of the paused trials that are furthest, or None if no trial is paused."""
        table = self._table
        waiting = np.flatnonzero(table.states == PAUSED)
        if not len(waiting):
            return None
        rungs = self._rungs_reached()[waiting]
        furthest = waiting[rungs == rungs.max()]
        epoch = self._rungs[rungs.max() - 1] if rungs.max() else table.epochs[furthest].min()
        return table.best(furthest, int(epoch))

    def _is_closing(self, left: float) -> bool:
        """Return whether too little of the budget is left for a new trial; see :data:`CLOSING`."""
        if self.budget.seconds is not None:
            second = float(self._rungs[min(1, len(self._rungs) - 1)])
            return left < CLOSING * second * self._table.mean_cost
        return self.budget.epochs is not None and left < CLOSING * self.last

    def _stage_costs(self) -> list[float]:
        """Return the cost of each stage, including what its running trials will use.

        Epochs that trials run unjudged above the first rung count for no stage. Otherwise the first trials,
        which are the only ones at the higher rungs, would count as the finals.
        """
        table = self._table
        running = table.states == RUNNING
        costs = table.costs(np.arange(len(table)))
        ends = np.where(running, self._goals(), table.epochs)
        if self.budget.seconds is not None:
            # A trial cannot use more than the time left.
            ends = np.minimum(ends, table.epochs + max(self._left(), 0.0) / np.maximum(costs, 1e-9))
        first = float(self._rungs[0])
        unjudged = self._unjudged.marks(len(table))
        begins = np.where(unjudged, max(float(self.latest or 0), first), 0.0)
        stage_costs: list[float] = []
        for rung in self._rungs:
            stage_costs.append(float((np.clip(np.minimum(ends, rung) - begins, 0, None) * costs).sum()))
            begins = np.maximum(begins, rung)
        stage_costs[0] += float(first * costs[unjudged].sum())
        return stage_costs
