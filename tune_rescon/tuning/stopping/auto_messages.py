"""Sentences about the scheduler ``auto``: its plan for the dry run, its decisions for the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tune_rescon.errors import counted
from tune_rescon.spaces import Space
from tune_rescon.tuning.stopping.auto_rule import AutoRule
from tune_rescon.tuning.stopping.budget_plan import SCREENING, UNCONFIRMED_SCREENING
from tune_rescon.tuning.stopping.from_space import make_stopping_rule, possible_rungs
from tune_rescon.tuning.stopping.rule import Decision, Observation

if TYPE_CHECKING:  # trial.py is built on rule.py, so this package imports nothing of it
    from tune_rescon.tuning.trial import TrialRecord

__all__ = [
    "plan_messages",
    "planned_epochs",
    "rungs_and_reasons",
]

#: Number of trials at once in the plan of a search whose slots are not known yet.
PLANNED_SLOTS = 4


def rungs_and_reasons(
    space: Space, trials: Sequence[TrialRecord], *, slots: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the rungs of a search, and sentences about why ``auto`` chose them.

    Args:
        space: The space of the search.
        trials: The trials of the record.
        slots: Number of trials that run at once.

    Returns:
        The rungs in epochs; for ``auto``, those that the values have led to. No sentences for other
        schedulers.
    """
    rule = _replayed(space, trials, slots=slots)
    if rule is None:
        return possible_rungs(space), ()
    return rule.rungs, (*_rung_reasons(rule), *_limit_reasons(rule))


def _limit_reasons(rule: AutoRule) -> Iterator[str]:
    """Yield sentences about rungs that the hours move, and slots that a budget of epochs leaves idle."""
    if rule.reach < rule.last:
        yield (
            f"The hours allow about {rule.reach} of {counted(rule.last, 'epoch')} on each slot,"
            " so the rungs before the last one are earlier."
        )
    most = rule.budget.max_concurrent(rule.last)
    if most is not None and most < rule.budget.slots:
        yield _at_once(most)


def _at_once(most: int) -> str:
    return (
        f"After the first trials, at most {counted(most, 'trial')} at once:"
        f" the budget of epochs allows {counted(most, 'full training')},"
        " and more trials at once would start before there are values to decide by."
        " A budget of hours uses every slot."
    )


def _rung_reasons(rule: AutoRule) -> tuple[str, ...]:
    rungs = f"Rung{'s' if len(rule.rungs) > 1 else ''}: {', '.join(map(str, rule.rungs))}."
    if not rule.learns:
        return (f"{rungs} The budget is too small to learn another first rung.",)
    if rule.agreement is None:
        return (f"{rungs} Too few trials have shown how well early ranks agree with later ones.",)
    agreement = rule.agreement
    evidence = f"{counted(agreement.trials, 'trial')} that no rung had judged"
    if agreement.ranks_are_unstable:
        why = f"up to epoch {agreement.latest}, the ranks of {evidence} change from epoch to epoch"
        if rule.no_rung_judges:
            kept = "Every trial trains to the end; only one whose value has never changed pauses"
            return (f"No epoch before the last one is a rung, because {why}. {kept}.",)
        advice = "A budget of hours or epochs would train every trial to the end"
        return (f"{rungs} Values there may say little, because {why}. {advice}.",)
    lines = [f"First rung: epoch {agreement.first}, chosen by {evidence}. {rungs}"]
    for epoch, correlation in sorted(agreement.correlations.items()):
        role = "is a rung" if epoch in rule.rungs else "is not a rung"
        ranks = f"a rank correlation of {correlation:.2f} with those at epoch {agreement.latest}"
        lines.append(f"Epoch {epoch} {role}: the values there have {ranks}.")
    if rule.is_unconfirmed:
        lines.append(
            f"No later ranks confirm those at epoch {agreement.first}: new trials get"
            f" {UNCONFIRMED_SCREENING:.0%} of the budget instead of {SCREENING:.0%}, and more trials finish."
        )
    return tuple(lines)


def _replayed(space: Space, trials: Sequence[TrialRecord], *, slots: int) -> AutoRule | None:
    rule = make_stopping_rule(space, slots=slots)
    if not isinstance(rule, AutoRule):
        return None
    for trial in trials:
        for epoch in range(1, trial.epochs + 1):
            rule.replay(trial.observation(epoch))
        if trial.state.is_final:
            rule.ended(trial.number)
    return rule


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """Counts of a planned search."""

    started: int
    finished: int
    epochs: int

    def __str__(self) -> str:
        # At the end of a search, the trials that are still paused are stopped.
        stopped = self.started - self.finished
        trials = f"{counted(self.started, 'trial')}, {self.finished} finished and {stopped} stopped"
        return f"{trials}, {counted(self.epochs, 'epoch')} in all"


def plan_messages(space: Space) -> Iterator[str]:
    """Yield sentences about the plan of a search with the scheduler ``auto``.

    The counts come from the rule itself: on curves whose first epoch ranks the trials as the last one does,
    and on curves whose early ranks are the reverse of the later ones. The trials of a budget in hours cannot
    be counted before an epoch has been timed.
    """
    unconfirmed = ""
    if space.budget.hours is not None or space.budget.epochs is not None:
        unconfirmed = f"; if only the latest of them can judge, new trials get {UNCONFIRMED_SCREENING:.0%}"
    yield (
        f"auto: {SCREENING:.0%} of the budget goes to new trials, the rest to the best paused ones;"
        f" the first rung is one of these, chosen by how well early ranks agree with later ones{unconfirmed}"
    )
    if space.budget.hours is not None:
        hours = f"{counted(space.budget.hours, 'hour')} on each slot"
        yield f"auto: {hours}; the number of trials depends on how long the first epochs take"
        return
    slots = space.budget.concurrent or PLANNED_SLOTS
    rule = make_stopping_rule(space, slots=slots)
    most = rule.budget.max_concurrent(rule.last) if isinstance(rule, AutoRule) else None
    if most is not None and most < slots:
        yield f"auto: {_at_once(most)}"
    rungs = possible_rungs(space)
    case = f"auto, if epoch {rungs[0]} ranks the trials as the last epoch does"
    yield f"{case}: {_expected(space, slots, early=1)}"
    if len(rungs) > 2:
        yield f"auto, if early epochs rank them in reverse: {_expected(space, slots, early=-1)}"


def planned_epochs(space: Space) -> int | None:
    """Return the expected number of epochs of a search with ``auto``; None for a budget in hours."""
    if space.budget.hours is not None:
        return None
    return _expected(space, space.budget.concurrent or PLANNED_SLOTS, early=1).epochs


def _expected(space: Space, slots: int, *, early: int) -> _Expected:
    """Run the rule on slots of equal speed; ``early`` is -1 if the first values have the reverse order."""
    rule = make_stopping_rule(space, slots=slots)
    assert isinstance(rule, AutoRule)
    last, sign = space.fidelity.max, 1 if space.metric.mode == "max" else -1
    turns = rule.latest or last
    running: list[int] = []
    reached: dict[int, int] = {}
    epochs = 0

    def seen(number: int, epoch: int) -> Observation:
        # Shuffled, so that the best trial is not the last to start.
        merit = number * 7919 % 1009
        value = merit if early == 1 or epoch >= turns else -merit
        return Observation(number=number, epoch=epoch, value=float(sign * value))

    while True:
        while len(running) < slots:
            number = rule.promote()
            if number is None and rule.may_start():
                number = len(reached)
                reached[number] = 0
            if number is None:
                break
            rule.started(number)
            running.append(number)
        if not running:
            finished = sum(epoch == last for epoch in reached.values())
            return _Expected(started=len(reached), finished=finished, epochs=epochs)
        # Of thousands of epochs, only a few need a decision. If no rung judges, each of them may.
        ahead = min(_next_decision(rule, reached[n]) - reached[n] for n in running) - 1
        if ahead and not rule.no_rung_judges:
            for number in running:
                reached[number] += ahead
                rule.record_unchanged(seen(number, reached[number]), ahead)
            epochs += ahead * len(running)
        number = running.pop(0)
        reached[number] += 1
        epochs += 1
        if rule.judge(seen(number, reached[number])).decision is Decision.CONTINUE:
            running.append(number)


def _next_decision(rule: AutoRule, epoch: int) -> int:
    """Return the first epoch after ``epoch`` at which a trial may be judged, or the values may turn."""
    return min(each for each in (*rule.rungs, rule.latest or rule.last, rule.last) if each > epoch)
