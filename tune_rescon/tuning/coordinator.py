"""What happens to trials, decided in one place: handed out, judged each epoch, closed.

The coordinator knows the record, the stopping rule, the proposer and whoever listens. It knows no Ray: Tune's
searcher and scheduler (:mod:`tune_rescon.tuning.execution`) ask it and do as it says, and a simulation can do
the same in microseconds. Everything runs on the driver's main thread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tune_rescon.config import TrialState
from tune_rescon.tuning.callbacks import SearchListener
from tune_rescon.tuning.sampler import SearchSampler
from tune_rescon.tuning.schedulers import Decision, Observation, StoppingRule, Verdict
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "KEEP_BEST",
    "MOST_IN_A_ROW",
    "Coordinator",
    "FailureStreak",
    "SearchPlan",
    "keepers",
    "shared_cause",
]


#: Trials whose best checkpoint outlives the search: enough for ``train --top`` without filling a disk.
KEEP_BEST: Final = 5


def keepers(ended: Iterable[TrialRecord], *, keep: int | None = KEEP_BEST) -> frozenset[int]:
    """Numbers of the ``keep`` best trials that ended with a finite value; None: of all of them."""
    judged = [trial for trial in ended if trial.best_epoch]
    return frozenset(trial.number for trial in sorted(judged, key=TrialRecord.rank_key)[:keep])


#: Trials that fail one after the other before the search stops: what the next would do is known by then.
MOST_IN_A_ROW: Final = 5


class FailureStreak:
    """The trials that failed since the last one that did not."""

    def __init__(self, most: int = MOST_IN_A_ROW) -> None:
        """``most``: failures in a row that are too many."""
        self._most = most
        self._failed: list[TrialRecord] = []

    def add(self, trial: TrialRecord) -> str | None:
        """Count a trial that ended; what the failed ones share if they are too many now."""
        if trial.state is not TrialState.FAILED:
            # Diverged and out of memory are answers, and a trial that ended well says that others can.
            self._failed.clear()
            return None
        self._failed.append(trial)
        return shared_cause(self._failed) if len(self._failed) >= self._most else None


def shared_cause(failed: Sequence[TrialRecord]) -> str:
    """What failed trials have in common: the error, or the values that all of them had."""
    last_lines = {_last_line(trial) for trial in failed}
    said = f"all said: {last_lines.pop()}" if len(last_lines) == 1 else _differing(failed)
    shared = _shared_values(failed)
    values = f" All had {', '.join(f'{k}={v}' for k, v in shared.items())}." if shared else ""
    return f"{len(failed)} trials in a row failed; {said}.{values}"


def _last_line(trial: TrialRecord) -> str:
    lines = (trial.error or "").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "nothing"


def _differing(failed: Sequence[TrialRecord]) -> str:
    return "the last said: " + _last_line(failed[-1])


def _shared_values(failed: Sequence[TrialRecord]) -> dict[str, object]:
    first, *others = failed
    return {
        name: value
        for name, value in first.parameters.items()
        if all(name in trial.parameters and trial.parameters[name] == value for trial in others)
    }


#: Times a trial whose worker process died is handed out again, in one run of the search.
WORKER_RETRIES: Final = 3
#: The same where its whole node was gone: spot machines come and go, but a trial may also be what fells them.
NODE_RETRIES: Final = 20


def _nothing() -> None:
    """The guard of a search that has its record to itself."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How much there is to do, and what only the space knows.

    ``total`` counts trials over the whole life of the search, earlier runs included. ``deadline`` is on
    ``time.monotonic``'s clock, seconds.
    """

    total: int
    deadline: float | None = None
    group: Callable[[TrialRecord], Hashable] = lambda _: None
    """Trials are compared only with those of an equal group."""
    cost: Callable[[TrialRecord, int], float] | None = None
    """The second objective, made small, of a trial after so many epochs; None where there is none."""
    same_memory: Callable[[Mapping[str, Any]], Hashable] = lambda _: None
    """Equal for configurations (plain values) that need the same memory; None: nothing is known."""
    keep: int | None = KEEP_BEST
    """Trials that keep their checkpoint when they have ended, the best of all; None: every one."""
    guard: Callable[[], None] = field(default=_nothing)
    """Called before the record is written; raises when it belongs to another driver."""


class Coordinator:
    """The life of every trial of one search."""

    def __init__(
        self,
        plan: SearchPlan,
        record: StudyRecord,
        rule: StoppingRule,
        proposer: SearchSampler,
        *,
        listeners: Sequence[SearchListener] = (),
        prune: Callable[[int, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up on a record that may already hold trials.

        Args:
            plan: how much to do.
            record: the durable record; its recorded values fill the rule.
            rule: the stopping rule; it has seen nothing yet.
            proposer: knows the record's trials.
            listeners: told of everything, in order.
            prune: deletes the checkpoints of a trial except the given file.
            clock: monotonic seconds.
        """
        self._plan = plan
        self._record = record
        self._rule = rule
        self._proposer = proposer
        self._listeners = listeners
        self._prune = prune
        self._clock = clock
        self._interrupted = False
        self._done = False
        self._streak = FailureStreak()
        self._running: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._lost_nodes: Counter[int] = Counter()
        self.failure: str | None = None
        """Why the search cannot go on, if it cannot: too many trials failed in a row."""
        self.space_is_exhausted = False
        """Whether every point of the space has run, before the budget was spent."""
        trials = record.trials()
        self._kept = keepers((t for t in trials if t.state.is_final), keep=plan.keep)
        self._out_of_memory = {
            self._memory(t): t.number for t in trials if t.state is TrialState.OUT_OF_MEMORY
        }
        for listener in listeners:
            listener.search_started(trials)
        self._unfinished = self._recall(trials)

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked the search to end early."""
        return self._interrupted

    def interrupt(self) -> None:
        """Hand out no more trials, and end each running one after its present epoch."""
        self._interrupted = True

    @property
    def exhausted(self) -> bool:
        """Whether no trial will be handed out any more. While one runs, another may yet be promoted."""
        return self._ending or self._done

    def next_trial(self) -> TrialRecord | None:
        """Hand out a trial: an unfinished one of an earlier run, a promoted one, or a new one.

        None when there is none now: for good if :attr:`exhausted`, else until a running trial has come on.
        """
        if self._ending:
            return None
        self._plan.guard()
        if self._unfinished:
            return self._started(self._record.reopen(self._unfinished.pop(0)))
        promoted = self._rule.promote()
        if promoted is not None:
            return self._started(self._record.reopen(promoted))
        while self._more:
            enqueued = self._record.next_enqueued(self._proposer.fits)
            infeasible = self._is_infeasible if self._out_of_memory else None
            proposal = self._proposer.propose(infeasible, enqueued=enqueued)
            if proposal is None:
                self.space_is_exhausted = True
                break
            trial = self._record.open(proposal)
            self._proposer.opened(trial)
            if not self._ends_unrun(trial):
                return self._started(trial)
        last = self._last_promotion()
        if last is None and not self._running:
            self._done = True
            self._stop_waiting()
        return last

    def epoch_done(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        checkpoint: str | None,
        *,
        device: str | None = None,
    ) -> Decision:
        """Judge an epoch, record it with the verdict, and close the trial unless it goes on.

        A trial that was retried from its checkpoint reports epochs again that are recorded already; those are
        not judged twice. ``device`` is the kind it ran on, where that is known.
        """
        known = self._record.trial(number)
        if number not in self._running:
            return Decision.STOP
        if epoch <= known.epochs:
            return Decision.CONTINUE
        self._plan.guard()
        verdict = self._judge(known.extended(metrics))
        trial = self._record.report(number, epoch, metrics, verdict, checkpoint=checkpoint, device=device)
        self._proposer.reported(trial)
        for listener in self._listeners:
            listener.epoch_done(trial, metrics, verdict)
        self._act(trial)
        if verdict.decision is Decision.CONTINUE and self._ending_now:
            self._set_aside(number)
            return Decision.STOP
        return verdict.decision

    def note(self, number: int, text: str) -> None:
        """Record and tell what the user should know about a trial."""
        if number not in self._running:
            return
        self._plan.guard()
        trial = self._record.note(number, text)
        for listener in self._listeners:
            listener.trial_noted(trial, text)

    def close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        """End a running trial for good in ``state``; nothing happens if it does not run (any more)."""
        if number in self._running:
            self._close(number, state, checkpoint=checkpoint, error=error)

    def worker_died(self, number: int, *, node_is_gone: bool = False) -> None:
        """Hand a running trial out again, from its last checkpoint; after some times it has failed."""
        if number not in self._running:
            return
        deaths, most = (self._lost_nodes, NODE_RETRIES) if node_is_gone else (self._deaths, WORKER_RETRIES)
        deaths[number] += 1
        if deaths[number] > most:
            what = "node was lost" if node_is_gone else "worker process died"
            self._close(number, TrialState.FAILED, error=f"its {what}, as {most} times before")
        else:
            # It counts as running until then: nothing is exhausted before, and an interruption finds it.
            self._unfinished.append(number)

    def worker_left(self, number: int) -> None:
        """Hand a running trial out again whose process has left it in order: as often as that happens."""
        if number in self._running:
            self._unfinished.append(number)

    def settle(self) -> None:
        """No trial runs any more: those that were cut short, and those that pause, wait to be resumed.

        Unless the time is up: then those that pause were stopped at their rung.
        """
        for number in sorted(self._running):
            self._set_aside(number)
        if not self._ending_now and self._late():
            self._stop_waiting()

    @property
    def _ending(self) -> bool:
        return self._ending_now or self._late()

    @property
    def _ending_now(self) -> bool:
        return self._interrupted or self.failure is not None

    @property
    def _more(self) -> bool:
        return not self.space_is_exhausted and len(self._record) < self._plan.total

    def _recall(self, trials: Sequence[TrialRecord]) -> list[int]:
        """Show the rule what was recorded, do what was decided but not done; the trials to go on with."""
        for trial in trials:
            for epoch in range(1, trial.epochs + 1):
                self._rule.recall(self._observation(trial, epoch))
        unfinished = []
        for trial in trials:
            if trial.state.is_final:
                continue
            if trial.decision in (None, Decision.CONTINUE):
                unfinished.append(trial.number)
            elif trial.decision is Decision.PAUSE:
                # A rule that has changed since may have no rung for it: then it runs on to the next one.
                if not self._rule.wait(trial.number):
                    unfinished.append(trial.number)
            else:
                self._act(trial)
        return unfinished

    def _started(self, trial: TrialRecord) -> TrialRecord:
        self._running.add(trial.number)
        for listener in self._listeners:
            listener.trial_started(trial)
        return trial

    def _is_infeasible(self, config: Mapping[str, Any]) -> bool:
        key = self._plan.same_memory(config)
        return key is not None and key in self._out_of_memory

    def _memory(self, trial: TrialRecord) -> Hashable:
        return None if trial.origin is None else self._plan.same_memory(trial.origin.config)

    def _ends_unrun(self, trial: TrialRecord) -> bool:
        """Close a trial that would run out of memory as another did."""
        if trial.origin is None or not self._is_infeasible(trial.origin.config):
            return False
        before = self._out_of_memory[self._memory(trial)]
        error = f"not run: trial {before}, whose network needs the same memory, ran out of it"
        self._close(trial.number, TrialState.OUT_OF_MEMORY, error=error)
        return True

    def _last_promotion(self) -> TrialRecord | None:
        """Where no rung was large enough to promote anybody to the end, the best goes there all the same."""
        if self._running or any(t.state is TrialState.FINISHED for t in self._record.trials()):
            return None
        promoted = self._rule.promote(anyone=True)
        return None if promoted is None else self._started(self._record.reopen(promoted))

    def _stop_waiting(self) -> None:
        for number in self._rule.waiting():
            self._close(number, TrialState.STOPPED, checkpoint=self._record.trial(number).checkpoint)

    def _judge(self, trial: TrialRecord) -> Verdict:
        verdict = self._rule.judge(self._observation(trial, trial.epochs))
        if verdict.decision in (Decision.CONTINUE, Decision.PAUSE) and self._late():
            return Verdict(decision=Decision.STOP)
        return verdict

    def _observation(self, trial: TrialRecord, epoch: int) -> Observation:
        return Observation(
            number=trial.number,
            epoch=epoch,
            value=trial.curve[epoch - 1],
            group=self._plan.group(trial),
            cost=self._plan.cost(trial, epoch) if self._plan.cost else 0.0,
        )

    def _act(self, trial: TrialRecord) -> None:
        """Do what was decided after a trial's last epoch."""
        match trial.decision:
            case Decision.FINISH:
                self._close(trial.number, TrialState.FINISHED, checkpoint=trial.checkpoint)
            case Decision.STOP:
                self._close(trial.number, TrialState.STOPPED, checkpoint=trial.checkpoint)
            case Decision.DIVERGED:
                self._close(trial.number, TrialState.DIVERGED)
            case Decision.PAUSE:
                self._running.discard(trial.number)
                paused = self._record.pause(trial.number)
                self._proposer.reported(paused)
                for listener in self._listeners:
                    listener.trial_ended(paused)

    def _close(
        self, number: int, state: TrialState, *, checkpoint: str | None = None, error: str | None = None
    ) -> None:
        self._plan.guard()
        self._running.discard(number)
        kept = self._retain(number, checkpoint, ended_well=state in (TrialState.FINISHED, TrialState.STOPPED))
        ending = self._record.trial(number)
        cost = self._plan.cost(ending, ending.epochs) if self._plan.cost else None
        trial = self._record.close(number, state, checkpoint=kept, error=error, cost=cost)
        self._proposer.ended(trial)
        if state is TrialState.OUT_OF_MEMORY:
            self._out_of_memory.setdefault(self._memory(trial), number)
        self.failure = self.failure or self._streak.add(trial)
        for listener in self._listeners:
            listener.trial_ended(trial)

    def _set_aside(self, number: int) -> None:
        """Leave a running trial to a resume."""
        self._plan.guard()
        self._running.discard(number)
        trial = self._record.interrupt(number)
        for listener in self._listeners:
            listener.trial_ended(trial)

    def _late(self) -> bool:
        return self._plan.deadline is not None and self._clock() >= self._plan.deadline

    def _retain(self, number: int, checkpoint: str | None, *, ended_well: bool) -> str | None:
        """Delete what falls out of the best few; what is left of this trial's own.

        One of the best few that ``ended_well`` and names no checkpoint could not write or send it: what it
        has is not known to be a loser's, and stays.
        """
        # The best few of all are among the best few so far and this one.
        kept = keepers((self._record.trial(n) for n in (*self._kept, number)), keep=self._plan.keep)
        survives = checkpoint if number in kept else None
        if survives is not None or number not in kept or not ended_well:
            self._prune(number, survives)
        for loser in self._kept - kept:
            self._prune(loser, None)
            self._record.forget_checkpoint(loser)
        self._kept = kept
        return survives
