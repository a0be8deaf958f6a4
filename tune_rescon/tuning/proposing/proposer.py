"""Who draws the next trial: an Optuna sampler over an in-memory study of its own.

Sampling on the durable study costs a query for each trial and a transaction for each parameter, and what it
must say of a stopped trial is not what a sampler should learn (:mod:`.telling`). So the sampler has a view:
rebuilt from the record when a search goes on, and bounded, for TPE's cost grows with what it looks at.

Trial n's draw depends on the space, n, and what was told before: nothing that dies with a driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import optuna
from optuna.samplers import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, distributions, suggest
from tune_rescon.tuning.proposing.samplers import make_sampler
from tune_rescon.tuning.proposing.telling import READS_PRUNED, Told, common_epoch, told
from tune_rescon.tuning.record.study import FIXED_PARAMS, Enqueued, Proposal
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.rules.ladder import ladder_levels

__all__ = ["Proposer", "most_telling"]

#: Samplers whose cost grows with the trials they look at, and that need no generation to be whole.
_BOUNDED: Final = ("tpe", "gp")

#: Samplers that note on a trial to which generation it belongs.
_REMEMBER: Final = ("cmaes", "nsga2")

#: What a bounded view keeps when it is renewed: the best that ended or pause, and of the others the latest.
KEEP_BEST: Final = 100
KEEP_LATEST: Final = 300

#: What a bounded view keeps is chosen anew before every trial whose number is a multiple of this, and noted
#: on that trial: a paused one may have risen in rank by the time a search goes on.
RENEW_EVERY: Final = 200
_KEPT: Final = "view_kept"

#: Draws of a trial that is known not to fit into memory before it is given up.
ATTEMPTS: Final = 20


class Proposer:
    """Draws trials, and learns from those that end."""

    def __init__(
        self,
        space: Space,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        background: Sequence[TrialSummary] = (),
        known: Iterable[TrialSummary] = (),
    ) -> None:
        """Set up for a search that may have trials already.

        Args:
            space: what to draw from.
            rows: the parameters of the first trials, which nobody draws; as Optuna holds them.
            background: ended trials of an earlier search, to learn from.
            known: the trials of this search, by number.
        """
        self._space = space
        self._distributions = distributions(space)
        self._rows = rows
        self._background = background
        self._known = {trial.number: trial for trial in known}
        compares = space.sampler.type in READS_PRUNED and space.metric.against is None
        self._reached: dict[int, set[int]] = {level: set() for level in ladder_levels(space) if compares}
        for trial in self._known.values():
            self._note_reached(trial)
        self._worst: float | None = None
        # Numbers that other programs' trials have are not known here: see opened().
        self._next = max(self._known, default=-1) + 1
        self._drawn = self._next
        self._kept = self._noted_kept()
        self._renew()

    def propose(
        self,
        infeasible: Callable[[Mapping[str, Any]], bool] = lambda _: False,
        *,
        enqueued: Enqueued | None = None,
    ) -> Proposal:
        """Draw the next trial, or complete an enqueued one.

        ``infeasible``: whether parameters are known to run out of memory. Such a draw is drawn again, but not
        for ever, and a row is what it is; whoever gets one anyway must look.
        """
        if enqueued is not None:
            return self._complete(enqueued)
        chooses = self._bounded and self._next % RENEW_EVERY == 0
        if chooses:
            self._kept = most_telling(tuple(self._known.values()))
        if self._stale or chooses:
            self._renew()
        number, self._next = self._next, self._next + 1
        self._drawn = number
        for attempt in range(ATTEMPTS):
            trial = self._draw(number, attempt)
            if number < len(self._rows) or attempt == ATTEMPTS - 1 or not infeasible(trial.params):
                break
            # To no sampler a failed trial says anything: it is as if it had not been drawn.
            self._study.tell(trial, state=OptunaState.FAIL)
        frozen = self._note_drawn(number, trial)
        memory = self._memory_of(frozen)
        if chooses and self._kept:
            memory[_KEPT] = sorted(self._kept)
        return Proposal(params=frozen.params, distributions=frozen.distributions, memory=memory)

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Whether given values, perhaps not of all parameters, are values of this space."""
        return self._trial(params, state=OptunaState.RUNNING) is not None

    def opened(self, trial: TrialSummary) -> None:
        """The drawn trial is in the record, with a higher number if other programs have added trials."""
        self._known[trial.number] = trial
        if trial.number not in self._view:
            self._view[trial.number] = self._view.pop(self._drawn)
        self._next = max(self._next, trial.number + 1)

    def reported(self, trial: TrialSummary) -> None:
        """Learn from an epoch of a trial that goes on or pauses."""
        self._known[trial.number] = trial
        self._note_reached(trial)
        self._tell(trial)

    def ended(self, trial: TrialSummary) -> None:
        """Learn from a trial that ended for good."""
        self.reported(trial)
        self._note_worst(trial)

    def _tell(self, trial: TrialSummary) -> None:
        """Put what is new about a trial into the view."""
        outcome, trial_id = self._told(trial), self._view.get(trial.number)
        new = outcome is not None and trial_id is not None and outcome != self._said.get(trial.number)
        # Optuna lets nobody change what it was told before: the view is made anew for the next draw.
        self._stale |= self._epoch != self._common_epoch() or (new and trial.number in self._said)
        if self._stale or not new:
            return
        assert outcome is not None
        assert trial_id is not None
        self._said[trial.number] = outcome
        for step, value in outcome.steps:
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._storage.set_trial_state_values(trial_id, outcome.state, outcome.values)

    def _told(self, trial: TrialSummary) -> Told | None:
        return told(trial, self._space.sampler.type, worst=self._worst, epoch=self._epoch)

    def _common_epoch(self) -> int | None:
        if not self._reached:
            return None
        counts = {level: len(numbers) for level, numbers in self._reached.items()}
        # As many as TPE wants to have seen before it models.
        return common_epoch(counts, enough=self._space.sampler.n_startup_trials)

    def _note_reached(self, trial: TrialSummary) -> None:
        for level, numbers in self._reached.items():
            if trial.epochs >= level and math.isfinite(trial.values[level - 1]):
                numbers.add(trial.number)

    def _complete(self, enqueued: Enqueued) -> Proposal:
        """Draw what an enqueued trial leaves open."""
        if self._stale:
            self._renew()
        self._study.sampler = make_sampler(self._space, enqueued.number)
        self._study.enqueue_trial(dict(enqueued.params))
        trial = self._study.ask()
        suggest(self._space, trial)
        self._drawn = enqueued.number
        frozen = self._note_drawn(self._drawn, trial)
        return Proposal(
            params=frozen.params,
            distributions=frozen.distributions,
            memory=self._memory_of(frozen),
            enqueued=enqueued,
        )

    def _note_drawn(self, number: int, trial: optuna.Trial) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._view[number] = trial_id
        return self._storage.get_trial(trial_id)

    def _memory_of(self, frozen: FrozenTrial) -> dict[str, Any]:
        remembers = self._space.sampler.type in _REMEMBER
        return {key: value for key, value in frozen.system_attrs.items() if remembers and key != FIXED_PARAMS}

    def _draw(self, number: int, attempt: int) -> optuna.Trial:
        self._study.sampler = make_sampler(self._space, number, attempt=attempt)
        if number < len(self._rows):
            self._study.enqueue_trial(dict(self._rows[number]))
        trial = self._study.ask()
        suggest(self._space, trial)
        return trial

    @property
    def _bounded(self) -> bool:
        return self._space.sampler.type in _BOUNDED

    def _last_choice(self) -> int:
        """The trial before which it was last chosen what to keep."""
        return self._next - self._next % RENEW_EVERY

    def _noted_kept(self) -> frozenset[int]:
        """What an earlier run of the search chose; nothing before the first choice."""
        chooser = self._known.get(self._last_choice())
        return frozenset(chooser.memory.get(_KEPT, ())) if chooser else frozenset()

    def _renew(self) -> None:
        """Begin the view anew: what was kept at the last choice, and what came since."""
        better = StudyDirection.MAXIMIZE if self._space.metric.mode == "max" else StudyDirection.MINIMIZE
        self._storage = optuna.storages.InMemoryStorage()
        directions = [better, *([StudyDirection.MINIMIZE] if self._space.metric.against else [])]
        self._stale, self._epoch = False, self._common_epoch()
        self._said: dict[int, Told] = {}
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._view: dict[int, int] = {}
        for trial in self._background:
            self._add(trial)
        self._said.clear()  # Those were another search's numbers.
        self._worst = None
        for trial in self._known.values():
            if not self._bounded or trial.number >= self._last_choice() or trial.number in self._kept:
                self._view[trial.number] = self._add(trial)
            self._note_worst(trial)
        self._choose_parents()

    def _choose_parents(self) -> None:
        """Have a genetic sampler choose again what it chose for the generations that were begun.

        It keeps its choice with the study, and crosses parents in another order once it is kept.
        """
        sampler = make_sampler(self._space, self._next)
        if isinstance(sampler, BaseGASampler):
            key = f"{type(sampler).__name__}:generation"
            begun = max((trial.memory.get(key, 0) for trial in self._known.values()), default=0)
            for generation in range(1, begun + 1):
                sampler.get_parent_population(self._study, generation)

    def _add(self, trial: TrialSummary) -> int:
        """Put a trial into the view; its id there."""
        outcome = self._told(trial)
        if outcome is None:
            template = self._template(trial, state=OptunaState.RUNNING)
        else:
            self._said[trial.number] = outcome
            template = self._template(
                trial,
                state=outcome.state,
                values=outcome.values,
                intermediate_values=dict(outcome.steps),
            )
        # One the space, changed since, has no place for: it keeps its number.
        template = template or create_trial(state=OptunaState.FAIL)
        return self._storage.create_new_trial(self._study_id, template_trial=template)

    def _template(self, trial: TrialSummary, **outcome: Any) -> FrozenTrial | None:
        """``trial`` for Optuna; None if this space does not have its values."""
        return self._trial(trial.parameters, system_attrs=dict(trial.memory), **outcome)

    def _trial(self, params: Mapping[str, Any], **outcome: Any) -> FrozenTrial | None:
        try:
            distributions = {name: self._distributions[name] for name in params}
            return create_trial(params=dict(params), distributions=distributions, **outcome)
        except (KeyError, TypeError, ValueError):
            return None

    def _note_worst(self, trial: TrialSummary) -> None:
        if trial.state.is_final and math.isfinite(trial.value):
            worse = min if trial.maximize else max
            self._worst = trial.value if self._worst is None else worse(self._worst, trial.value)


def most_telling(trials: Sequence[TrialSummary]) -> frozenset[int]:
    """Numbers of what a bounded view keeps: what runs, the best that do not, the latest of the rest."""
    resting = [trial for trial in trials if trial.state.is_final or trial.state is TrialState.PAUSED]
    best = {trial.number for trial in sorted(resting, key=TrialSummary.rank_key)[:KEEP_BEST]}
    rest = [trial.number for trial in resting if trial.number not in best][-KEEP_LATEST:]
    dropped = {trial.number for trial in resting} - best - set(rest)
    return frozenset(trial.number for trial in trials if trial.number not in dropped)
