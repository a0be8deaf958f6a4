"""What happens to trials, decided in one place: handed out, judged each epoch, closed.

The coordinator knows the record, the rungs and whoever listens. It knows no Ray: Tune's searcher and
scheduler (:mod:`.searcher`, :mod:`.scheduler`) ask it and do as it says, and a simulation can do the same in
microseconds. Everything runs on the driver's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optuna.trial import Trial

from tune_rescon.config import TrialState
from tune_rescon.tuning.record import StudyRecord, TrialSummary
from tune_rescon.tuning.retention import keepers
from tune_rescon.tuning.rungs import Decision, RungLadder, Verdict

__all__ = ["Coordinator", "SearchListener", "SearchPlan"]


class SearchListener(Protocol):
    """Whoever wants to know what happens. Called on the driver's main thread; may neither block nor raise."""

    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """The search begins, or goes on; ``trials`` is what its record holds already."""

    def trial_started(self, trial: TrialSummary) -> None:
        """A trial was handed out, for the first time or again."""

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """An epoch (``trial.epochs``) was recorded and judged."""

    def trial_ended(self, trial: TrialSummary) -> None:
        """A trial was closed, or interrupted."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How much there is to do.

    ``total`` counts trials over the whole life of the search, earlier runs included. ``deadline`` is on
    ``time.monotonic``'s clock, seconds.
    """

    suggest: Callable[[Trial], object]
    """Draws the active parameters of a trial."""
    total: int
    deadline: float | None = None
    group_by: tuple[str, ...] = ()


class Coordinator:
    """The life of every trial of one search."""

    def __init__(
        self,
        plan: SearchPlan,
        record: StudyRecord,
        ladder: RungLadder,
        *,
        listeners: Sequence[SearchListener] = (),
        prune: Callable[[int, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up on a record that may already hold trials.

        Args:
            plan: how much to do.
            record: the durable record; its recorded values fill the rungs.
            ladder: the stopping rule; one of a single level lets every trial run to its last epoch.
            listeners: told of everything, in order.
            prune: deletes the checkpoints of a trial except the given file.
            clock: monotonic seconds.
        """
        self._plan = plan
        self._record = record
        self._ladder = ladder
        self._listeners = listeners
        self._prune = prune
        self._clock = clock
        self._interrupted = False
        self._kept = keepers(t for t in record.trials() if t.state.is_final)
        self._unfinished = [t.number for t in record.trials() if not t.state.is_final]
        self._handed_out = len(record.trials()) - len(self._unfinished)
        self._refill_rungs()
        for listener in listeners:
            listener.search_started(record.trials())

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked the search to end early."""
        return self._interrupted

    def interrupt(self) -> None:
        """Hand out no more trials, and end each running one after its present epoch."""
        self._interrupted = True

    @property
    def exhausted(self) -> bool:
        """Whether no trial will be handed out any more."""
        return self._interrupted or self._late() or self._handed_out >= self._plan.total

    def next_trial(self) -> TrialSummary | None:
        """Open the next trial, an unfinished one of an earlier run first; None when there is none left."""
        if self.exhausted:
            return None
        self._handed_out += 1
        if self._unfinished:
            trial = self._record.reopen(self._unfinished.pop(0), self._plan.suggest)
        else:
            trial = self._record.ask(self._plan.suggest)
        for listener in self._listeners:
            listener.trial_started(trial)
        return trial

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        """Record an epoch, judge it, and close the trial unless it goes on.

        A trial that was retried from its checkpoint reports an epoch again if its worker died between the
        checkpoint and the report; what is recorded already is not judged twice.
        """
        known = self._record.trial(number)
        if known.state is not TrialState.RUNNING:
            return Decision.STOP
        if epoch <= known.epochs:
            return Decision.CONTINUE
        trial = self._record.report(number, epoch, metrics)
        verdict = self._judge(trial)
        for listener in self._listeners:
            listener.epoch_done(trial, metrics, verdict)
        if verdict.decision is Decision.FINISH:
            self.close(number, TrialState.FINISHED, checkpoint=checkpoint)
        elif verdict.decision is Decision.DIVERGED:
            self.close(number, TrialState.DIVERGED)
        elif verdict.decision is Decision.STOP:
            self.close(number, TrialState.STOPPED, checkpoint=checkpoint)
        elif self._interrupted:
            self.close(number, TrialState.INTERRUPTED, checkpoint=checkpoint)
            return Decision.STOP
        return verdict.decision

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        """End a trial in ``state``; nothing happens if it has ended already."""
        if not self._record.is_open(number):
            return
        kept = self._retain(number, checkpoint) if state.is_final else checkpoint
        trial = self._record.finish(number, state, checkpoint=kept, error=error)
        for listener in self._listeners:
            listener.trial_ended(trial)

    def close_all(self, state: TrialState) -> None:
        """End whatever still runs (the search was cut short)."""
        for trial in self._record.trials():
            self.close(trial.number, state)

    def _refill_rungs(self) -> None:
        for trial in self._record.trials():
            for epoch, value in enumerate(trial.values, 1):
                self._ladder.file(epoch, value, group=self._group(trial))

    def _judge(self, trial: TrialSummary) -> Verdict:
        verdict = self._ladder.judge(trial.epochs, trial.value, group=self._group(trial))
        if verdict.decision is Decision.CONTINUE and self._late():
            return Verdict(decision=Decision.STOP)
        return verdict

    def _group(self, trial: TrialSummary) -> tuple[Any, ...]:
        return tuple(trial.parameters.get(name) for name in self._plan.group_by)

    def _late(self) -> bool:
        return self._plan.deadline is not None and self._clock() >= self._plan.deadline

    def _retain(self, number: int, checkpoint: str | None) -> str | None:
        """Delete what falls out of the best few; what is left of this trial's own."""
        ended = [t for t in self._record.trials() if t.state.is_final or t.number == number]
        kept = keepers(ended)
        survives = checkpoint if number in kept else None
        self._prune(number, survives)
        for loser in self._kept - kept:
            self._prune(loser, None)
        self._kept = kept
        return survives
