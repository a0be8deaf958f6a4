"""The coordinator makes every decision about trials: it starts them, judges each epoch and closes them.

The coordinator uses the record, the stopping rule, the sampler and the callbacks. It does not depend on Ray.
Tune's searcher and scheduler (:mod:`tune_rescon.tuning.ray.tune_adapter`) call it and act on its decisions.
A simulation can do the same in microseconds. The coordinator runs in the driver, one call at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from tune_rescon.config import TrialState
from tune_rescon.errors import counted
from tune_rescon.tuning.callbacks import CallbackList, SearchCallback
from tune_rescon.tuning.ended_trials import (
    CHECKPOINTS_KEPT,
    CheckpointRetention,
    FailureStreak,
    MemoryFailures,
)
from tune_rescon.tuning.sampler import SearchSampler
from tune_rescon.tuning.stopping.rule import Decision, Observation, StoppingRule, Verdict
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["Coordinator", "SearchPlan"]


#: Number of times that a trial is retried in one run of the search after its worker process died.
WORKER_RETRIES: Final = 3
#: The same after the trial's whole node was lost. Spot machines are lost often, but a trial may also be the
#: cause of the loss.
NODE_RETRIES: Final = 20


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The amount of work of a search, and the functions that depend on its space."""

    total: int
    """Number of trials over all runs of the search, earlier runs included."""
    deadline: float | None = None
    """The end of the search, in seconds on the coordinator's clock; None without one."""
    seconds: float | None = None
    """The budget in seconds that ends at ``deadline``; None without one."""
    group: Callable[[TrialRecord], Hashable] = lambda _: None
    """Return the group of a trial. Trials are compared only with trials of an equal group."""
    cost: Callable[[TrialRecord, int], float] | None = None
    """Return a trial's second objective after a number of epochs; smaller is better. None without one."""
    device_count: float | None = None
    """The number of devices that each trial has; None if nothing is trained."""
    same_memory: Callable[[Mapping[str, Any]], Hashable] = lambda _: None
    """Return an equal key for configurations that need the same memory: see :class:`.MemoryFailures`."""
    version: int | None = None
    """The version of the space. It is recorded with a trial that runs out of memory."""
    same_devices: Callable[[TrialRecord], bool] = lambda _: True
    """Return whether a recorded trial had the devices, and therefore the memory, that trials get now."""
    violation: Callable[[Mapping[str, Any]], str | None] | None = None
    """Return the constraint that a configuration (plain values) breaks, or None. None without constraints."""
    keep: int | None = CHECKPOINTS_KEPT
    """See :func:`.top_k_checkpoints`. None if every trial keeps its checkpoint."""
    check_lease: Callable[[], None] = lambda: None
    """Called before the record is written. It raises if the record belongs to another driver."""


class Coordinator:
    """Starts, judges and closes every trial of one search."""

    def __init__(
        self,
        plan: SearchPlan,
        record: StudyRecord,
        rule: StoppingRule,
        sampler: SearchSampler,
        *,
        callbacks: Sequence[SearchCallback] = (),
        prune: Callable[[int, str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up the coordinator on a record that may already contain trials; :meth:`start` must follow.

        Args:
            plan: The amount of work.
            record: The durable record. Its recorded values are passed to ``rule``.
            rule: The stopping rule. It must not have seen any value yet.
            sampler: The sampler. It must already have the trials of ``record``.
            callbacks: Receive every event, in the given order.
            prune: Deletes all checkpoints of a trial except the given file.
            clock: Returns monotonic time in seconds.
        """
        self._plan = plan
        self._record = record
        self._rule = rule
        self._sampler = sampler
        self._callbacks = CallbackList(callbacks)
        self._clock = clock
        self._interrupted = False
        self._done = False
        self._streak = FailureStreak()
        self._running: set[int] = set()
        self._deaths: Counter[int] = Counter()
        self._lost_nodes: Counter[int] = Counter()
        self.failure: str | None = None
        """Why the search must end: trials fail in a row, or a machine cannot run them. None otherwise."""
        self.space_is_exhausted = False
        """True if every point of the space has run before the budget was spent."""
        self._retention = CheckpointRetention(record, prune, keep=plan.keep)
        self._out_of_memory = MemoryFailures(plan.same_memory)
        self._unfinished: list[int] = []

    def start(self) -> Self:
        """Pass the recorded trials to the rule and callbacks, and carry out decisions left open."""
        trials = self._record.trials()
        self._retention.start(trials)
        self._out_of_memory.add(filter(self._plan.same_devices, trials))
        self._callbacks.on_search_start(trials)
        self._unfinished = self._replay(trials)
        return self

    def interrupt(self) -> None:
        """Start no more trials, and interrupt each running trial after its current epoch."""
        self._interrupted = True

    @property
    def no_more_trials(self) -> bool:
        """True if no trial will start any more, neither a new one nor a paused one that is promoted."""
        return self._ending or self._done

    def next_trial(self) -> TrialRecord | None:
        """Return the next trial to run: an unfinished trial, a promoted trial or a new trial.

        An unfinished trial comes from an earlier run or lost its worker process.

        Returns:
            The trial, or None if no trial can start now. Unless :attr:`no_more_trials` is True, one may start
            after a running trial has progressed.
        """
        if self._ending:
            return None
        self._plan.check_lease()
        self._set_elapsed()
        while self._unfinished:
            number = self._unfinished.pop(0)
            if not self._close_if_requested(number):
                return self._start_trial(self._record.reopen(number))
        if (promoted := self._promote_next()) is not None:
            return promoted
        while not self.space_is_exhausted and len(self._record) < self._plan.total and self._rule.may_start():
            enqueued = self._record.next_enqueued(self._sampler.fits)
            # None until a trial fails: the parameters of a simulation may form no configuration to check.
            infeasible = self._out_of_memory.contains if self._out_of_memory else None
            proposal = self._sampler.ask(infeasible, enqueued=enqueued)
            if proposal is None:
                self.space_is_exhausted = True
                self._rule.no_new_trials()
                return self.next_trial()
            trial = self._record.open(proposal)
            self._sampler.on_trial_start(trial)
            if not self._close_if_infeasible(trial):
                return self._start_trial(trial)
        best = self._promote_best()
        if best is None and not self._running:
            self._done = True
            self._stop_paused()
        return best

    def epoch_done(
        self,
        number: int,
        epoch: int,
        metrics: Mapping[str, float],
        checkpoint: str | None,
        *,
        device: str | None = None,
    ) -> Decision:
        """Judge an epoch, record it with the verdict, and close or pause the trial unless it continues.

        A trial that was retried from its checkpoint may report epochs that are already recorded. Those epochs
        are not judged again.

        Args:
            number: The trial's number.
            epoch: The epoch that has ended, counted from 1.
            metrics: The metrics of the epoch.
            checkpoint: The checkpoint of the epoch. None if the trial has no checkpoint.
            device: The kind of device that the trial ran on. None if it is unknown.

        Returns:
            The decision that the trial's process carries out. It is also ``Decision.STOP`` if the trial is
            not running, or if the search is ending early. In the second case the trial is recorded as
            interrupted, and a resume continues it.
        """
        known = self._record.trial(number)
        if number not in self._running:
            return Decision.STOP
        if epoch <= known.epochs:
            return Decision.CONTINUE
        self._plan.check_lease()
        self._set_elapsed()
        requested = self._record.stop_requested(number)
        verdict, note = self._judge(known.extended(metrics), requested=requested)
        trial = self._record.report(
            number,
            epoch,
            metrics,
            verdict,
            checkpoint=checkpoint,
            device=device,
            device_count=self._plan.device_count,
        )
        self._sampler.on_epoch(trial)
        self._callbacks.on_epoch(trial, metrics, verdict)
        if note:
            self.note(number, note)
        self._apply_decision(trial)
        if verdict.decision is Decision.CONTINUE and self._is_cut_short:
            self._interrupt_trial(number)
            return Decision.STOP
        return verdict.decision

    def progress(self, number: int, share: float) -> None:
        """Tell the callbacks which share of its epoch a running trial has trained."""
        if number in self._running:
            self._callbacks.on_progress(self._record.trial(number), share)

    def note(self, number: int, text: str) -> None:
        """Record a note about a running trial for the user, and pass it to the callbacks."""
        if number not in self._running:
            return
        self._plan.check_lease()
        trial = self._record.note(number, text)
        self._callbacks.on_trial_note(trial, text)

    def close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        """Close a running trial permanently. Do nothing if the trial is not running.

        Args:
            number: The trial's number.
            state: The final state.
            error: The error that ended the trial, if one did.
        """
        if number in self._running:
            self._close(number, state, error=error)

    def abort(self, number: int, failure: str) -> None:
        """End the search because a machine cannot run its trials. Do nothing if the trial is not running.

        The trial is interrupted, not failed, because another machine may run it when the search resumes.

        Args:
            number: The trial whose machine cannot run it.
            failure: Why the machine cannot run it, and what the user can do.
        """
        if number in self._running:
            self.failure = self.failure or failure
            self._interrupt_trial(number)

    def worker_failed(self, number: int, *, node_is_gone: bool = False) -> None:
        """Retry a running trial from its last checkpoint, or fail it after too many retries."""
        if number not in self._running:
            return
        losses, limit = (self._lost_nodes, NODE_RETRIES) if node_is_gone else (self._deaths, WORKER_RETRIES)
        losses[number] += 1
        if losses[number] > limit:
            what = "node was lost" if node_is_gone else "worker process died"
            error = f"its {what}, after {counted(limit, 'retry', 'retries')}"
            self._close(number, TrialState.FAILED, error=error)
        else:
            # The trial counts as running until it is retried, so that an interruption includes it.
            self._unfinished.append(number)

    def worker_preempted(self, number: int) -> None:
        """Retry a running trial whose worker process was preempted. These retries are not limited."""
        if number in self._running:
            self._unfinished.append(number)

    def interrupt_remaining(self) -> None:
        """Interrupt every trial that is still marked as running, also those that a dead driver left.

        Call this after all worker processes have ended. Past the deadline, paused trials are stopped.
        """
        for trial in filter(lambda trial: trial.state is TrialState.RUNNING, self._record.trials()):
            self._interrupt_trial(trial.number)
        if not self._is_cut_short and self._past_deadline():
            self._stop_paused()

    @property
    def _ending(self) -> bool:
        return self._is_cut_short or self._past_deadline()

    @property
    def _is_cut_short(self) -> bool:
        """True if trials that would continue are interrupted instead."""
        return self._interrupted or self.failure is not None

    def _replay(self, trials: Sequence[TrialRecord]) -> list[int]:
        """Replay the values, carry out decisions left open, and return the trials that must continue."""
        for trial in trials:
            for epoch in range(1, trial.epochs + 1):
                self._rule.replay(self._observation(trial, epoch))
        unfinished = []
        for trial in trials:
            if trial.state.is_final:
                self._rule.ended(trial.number)
                continue
            if trial.decision in (None, Decision.CONTINUE):
                unfinished.append(trial.number)
            elif trial.decision is Decision.PAUSE:
                # If the rule was changed, it may have no rung for the trial. The trial then continues to the
                # next rung.
                if not self._rule.pause_again(trial.number):
                    unfinished.append(trial.number)
            else:
                self._apply_decision(trial)
        return unfinished

    def _set_elapsed(self) -> None:
        if self._plan.deadline is not None and self._plan.seconds is not None:
            self._rule.set_elapsed(self._plan.seconds - (self._plan.deadline - self._clock()))

    def _start_trial(self, trial: TrialRecord) -> TrialRecord:
        self._running.add(trial.number)
        self._rule.started(trial.number)
        self._callbacks.on_trial_start(trial)
        return trial

    def _close_if_infeasible(self, trial: TrialRecord) -> bool:
        """Close a trial that breaks a constraint, or would run out of memory as an earlier one did.

        The sampler draws no trial that breaks a constraint, but other programs may enqueue one. Return
        whether the trial was closed.
        """
        if trial.origin is None:
            return False
        broken = self._plan.violation(trial.origin.config) if self._plan.violation else None
        if broken is not None:
            self._close(trial.number, TrialState.FAILED, error=f"not run: {broken}")
            return True
        before = self._out_of_memory.same_as(trial.origin.config)
        if before is None:
            return False
        error = f"not run: trial {before}, whose network needs the same memory, ran out of it"
        self._close(trial.number, TrialState.OUT_OF_MEMORY, error=error)
        return True

    def _close_if_requested(self, number: int) -> bool:
        """Close a trial instead of resuming it if its stop was requested; return whether it was closed."""
        if not self._record.stop_requested(number):
            return False
        self._close(number, TrialState.STOPPED)
        return True

    def _promote_best(self) -> TrialRecord | None:
        """Start the best paused trial if no trial has finished and none is running.

        This is needed when no rung was large enough to promote a trial to the last epoch.
        """
        if self._running or any(t.state is TrialState.FINISHED for t in self._record.trials()):
            return None
        return self._promote_next(force=True)

    def _promote_next(self, *, force: bool = False) -> TrialRecord | None:
        """Start the next paused trial that the rule promotes; see :meth:`.StoppingRule.promote`."""
        while (number := self._rule.promote(force=force)) is not None:
            if not self._close_if_requested(number):
                return self._start_trial(self._record.reopen(number))
        return None

    def _stop_paused(self) -> None:
        for number in self._rule.paused():
            self._close(number, TrialState.STOPPED)

    def _judge(self, trial: TrialRecord, *, requested: bool) -> tuple[Verdict, str]:
        """Return the verdict on a trial's last epoch, and a note with the reason if it is not the rule's.

        A deadline that has passed needs no note. ``requested`` is True if the user has requested that the
        trial stops.
        """
        verdict = self._rule.judge(self._observation(trial, trial.epochs))
        if verdict.decision not in (Decision.CONTINUE, Decision.PAUSE):
            return verdict, ""
        stop, stopped = Verdict(decision=Decision.STOP), f"stopped after epoch {trial.epochs}"
        if requested:
            return stop, f"{stopped}, as `tune-rescon stop` requested"
        if self._past_deadline():
            return stop, ""
        if trial.out_of_patience:
            return stop, f"{stopped}: {trial.metric} was best at epoch {trial.best_epoch}"
        return verdict, ""

    def _observation(self, trial: TrialRecord, epoch: int) -> Observation:
        return trial.observation(
            epoch,
            group=self._plan.group(trial),
            cost=self._plan.cost(trial, epoch) if self._plan.cost else 0.0,
        )

    def _apply_decision(self, trial: TrialRecord) -> None:
        """Carry out the decision that followed a trial's last recorded epoch."""
        match trial.decision:
            case Decision.FINISH:
                self._close(trial.number, TrialState.FINISHED)
            case Decision.STOP:
                self._close(trial.number, TrialState.STOPPED)
            case Decision.DIVERGED:
                self._close(trial.number, TrialState.DIVERGED)
            case Decision.PAUSE:
                self._running.discard(trial.number)
                paused = self._record.pause(trial.number)
                self._sampler.on_epoch(paused)
                self._callbacks.on_trial_end(paused)

    def _close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        self._plan.check_lease()
        ran = number in self._running
        self._running.discard(number)
        ending = self._record.trial(number)
        cost = self._plan.cost(ending, ending.epochs) if self._plan.cost else None
        kept = self._retention.trial_ends(replace(ending, state=state, cost=cost))
        trial = self._record.close(
            number, state, checkpoint=kept, error=error, cost=cost, version=self._plan.version
        )
        self._sampler.on_trial_end(trial)
        # A deadline may have ended a trial that the rule paused.
        self._rule.ended(number)
        self._out_of_memory.add((trial,))
        if ran:
            self.failure = self.failure or self._streak.add(trial)
        self._callbacks.on_trial_end(trial)

    def _interrupt_trial(self, number: int) -> None:
        """Interrupt a running trial, so that a resume can continue it."""
        self._plan.check_lease()
        self._running.discard(number)
        self._callbacks.on_trial_end(self._record.interrupt(number))

    def _past_deadline(self) -> bool:
        return self._plan.deadline is not None and self._clock() >= self._plan.deadline
