"""Who draws the next trial: an Optuna sampler over an in-memory study of its own.

Sampling on the durable study costs a query for each trial and a transaction for each parameter, and what it
must say of a stopped trial is not what a sampler should learn (:mod:`.telling`). So the sampler has a view:
rebuilt from the record when a search goes on, and bounded, for TPE's cost grows with what it looks at.

Trial n's draw depends on the space, n, and what was told before: nothing that dies with a driver.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import optuna
from optuna.samplers import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState, plain_number
from tune_rescon.spaces import (
    Space,
    count_points,
    distributions,
    free_points,
    from_optuna,
    pending_rows,
    place_config,
    point_key,
    suggest,
    to_optuna,
    trial_config,
)
from tune_rescon.tuning.optuna_samplers import READS_PRUNED, SamplerTrial, common_epoch, make_sampler, told
from tune_rescon.tuning.schedulers import rung_levels
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.study import FIXED_PARAMS, Enqueued, Proposal
from tune_rescon.tuning.trial import TrialRecord, find_origin, make_origin

__all__ = [
    "SearchSampler",
    "most_telling",
]


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

#: Draws that have run before, after which a point that has not is chosen at random: a model that is sure of
#: its best point returns it every time.
REPEATED_DRAWS: Final = 5

#: Points of a space that is watched for its exhaustion: larger ones last longer than any search.
LARGEST_LISTED: Final = 10_000

Infeasible = Callable[[Mapping[str, Any]], bool]


class SearchSampler:
    """Draws trials, and learns from those that end."""

    def __init__(
        self,
        space: Space,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        background: Sequence[TrialRecord] = (),
        known: Iterable[TrialRecord] = (),
        versions: SpaceVersions | None = None,
    ) -> None:
        """Set up for a search that may have trials already.

        Args:
            space: what to draw from.
            rows: parameters of trials to run before any is drawn, as Optuna holds them. Those that have run
                already are not run again.
            background: ended trials of an earlier search, to learn from.
            known: the trials of this search, by number.
            versions: the spaces that the search has had, ``space`` the newest; None: it is the only one.
        """
        self._space = space
        self._versions = versions or SpaceVersions(spaces=(space,))
        self._alike = self._versions.alike
        self._distributions = distributions(space)
        self._placed: dict[int, Mapping[str, Any] | None] = {}
        self._background = [trial for each in background if (trial := self._placed_background(each))]
        self._known = {trial.number: self._as_of_now(trial) for trial in known}
        self._ran = Counter(self._key(trial.parameters) for trial in self._inside())
        self._rows = rows
        self._pending = self._pending_rows()
        self._points = count_points(space.parameters, most=LARGEST_LISTED)
        compares = space.sampler.type in READS_PRUNED and space.metric.against is None
        self._reached: dict[int, set[int]] = {level: set() for level in rung_levels(space) if compares}
        for trial in self._inside():
            self._note_reached(trial)
        self._worst: float | None = None
        # Numbers that other programs' trials have are not known here: see opened().
        self._next = max(self._known, default=-1) + 1
        self._last_number = self._next
        self._kept = self._noted_kept()
        self._renew()

    def propose(
        self, infeasible: Infeasible | None = None, *, enqueued: Enqueued | None = None
    ) -> Proposal | None:
        """Draw the next trial, or complete an enqueued one.

        Returns None if every point of the space has run, unless ``sampler.repeats`` or a trial is enqueued.

        ``infeasible``: whether a configuration, as plain values, is known to run out of memory. Such a draw
        is repeated, at most :data:`ATTEMPTS` times, and a row never: the caller must check the proposal.
        """
        if enqueued is not None:
            return self._complete(enqueued)
        row = self._next_row()
        if row is None and self._is_exhausted:
            return None
        chooses = self._bounded and self._next % RENEW_EVERY == 0
        if chooses:
            self._kept = most_telling(self._inside())
        if self._stale or chooses:
            self._renew()
        number, self._next = self._next, self._next + 1
        self._last_number = number
        trial = self._draw(number, 0, row) if row is not None else self._drawn(number, infeasible)
        frozen = self._note_drawn(number, trial)
        memory = self._memory_of(frozen)
        if chooses and self._kept:
            memory[_KEPT] = sorted(self._kept)
        return self._proposal(frozen, memory, number)

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Whether given values, perhaps not of all parameters, are values of this space."""
        try:
            self._trial(params, state=OptunaState.RUNNING)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def opened(self, trial: TrialRecord) -> None:
        """The drawn trial is in the record, with a higher number if other programs have added trials."""
        self._known[trial.number] = trial
        if trial.number not in self._view:
            self._view[trial.number] = self._view.pop(self._last_number)
        self._next = max(self._next, trial.number + 1)
        self._ran[self._key(trial.parameters)] += 1

    def reported(self, trial: TrialRecord) -> None:
        """Learn from an epoch of a trial that goes on or pauses."""
        trial = self._known[trial.number] = self._as_of_now(trial)
        if self._is_inside(trial):
            self._note_reached(trial)
            self._tell(trial)

    def ended(self, trial: TrialRecord) -> None:
        """Learn from a trial that ended for good."""
        self.reported(trial)
        if self._is_inside(trial):
            self._note_worst(trial)

    def _as_of_now(self, trial: TrialRecord) -> TrialRecord:
        """A trial with its parameters in the space as it is now; see :meth:`_is_inside`.

        A trial of another version loses what the sampler noted on it: a generation of another space means
        nothing in this one.
        """
        if trial.origin is not None and trial.origin.space in self._alike:
            return trial
        if trial.number not in self._placed:
            self._placed[trial.number] = self._place(trial, self._space)
        parameters = self._placed[trial.number]
        if parameters is None or trial.origin is None:
            return trial
        memory = {key: value for key, value in trial.memory.items() if key == _KEPT}
        return dataclasses.replace(trial, parameters=parameters, memory=memory)

    def _placed_background(self, trial: TrialRecord) -> TrialRecord | None:
        """A trial of an earlier search, which was placed in the first version of the space."""
        if 1 in self._alike:
            return trial
        parameters = self._place(trial, self._versions.spaces[0])
        return None if parameters is None else dataclasses.replace(trial, parameters=parameters)

    def _place(self, trial: TrialRecord, of: Space) -> Mapping[str, Any] | None:
        """The parameters of this trial in the space as it is now; None if the space does not contain it.

        ``of``: the space of a trial without origin.
        """
        origin = trial.origin or find_origin(of, trial.parameters, version=1, number=trial.number)
        sampled = place_config(self._space, origin.config).sampled if origin else None
        return None if sampled is None else to_optuna(sampled)

    def _is_inside(self, trial: TrialRecord) -> bool:
        """Whether the space, as it is now, could draw the trial: the sampler learns from no other."""
        return self._placed.get(trial.number, trial.parameters) is not None

    def _inside(self) -> tuple[TrialRecord, ...]:
        return tuple(trial for trial in self._known.values() if self._is_inside(trial))

    def _key(self, parameters: Mapping[str, Any]) -> Hashable:
        return point_key(self._space.parameters, parameters)

    def _pending_rows(self) -> list[Mapping[str, Any]]:
        ran = self._ran.copy()
        pending = pending_rows(self._rows, ran, self._key)
        while self._repeats_grid and not pending:
            pending = pending_rows(self._rows, ran, self._key)
        return pending

    def _next_row(self) -> Mapping[str, Any] | None:
        if not self._pending and self._repeats_grid:
            self._pending = list(self._rows)
        return self._pending.pop(0) if self._pending else None

    @property
    def _repeats_grid(self) -> bool:
        return self._space.sampler.type == "grid" and self._space.sampler.repeats

    @property
    def _is_exhausted(self) -> bool:
        return not self._space.sampler.repeats and len(self._ran) == self._points

    def _drawn(self, number: int, infeasible: Infeasible | None) -> optuna.Trial:
        """A draw of the sampler that fits into memory and has not run before, if there is one."""
        repeated = 0
        for attempt in range(ATTEMPTS):
            trial = self._draw(number, attempt)
            if not self._space.sampler.repeats and self._ran[self._key(trial.params)]:
                repeated += 1
            elif infeasible is None or attempt == ATTEMPTS - 1 or not infeasible(self._config(trial)):
                return trial
            # To no sampler a failed trial says anything: it is as if it had not been drawn.
            self._study.tell(trial, state=OptunaState.FAIL)
            if repeated == REPEATED_DRAWS:
                break
        return self._draw(number, ATTEMPTS, self._free_point(number))

    def _config(self, trial: optuna.Trial) -> Mapping[str, Any]:
        return trial_config(self._space, from_optuna(self._space, trial.params)).to_dict()

    def _free_point(self, number: int) -> Mapping[str, Any] | None:
        """A point that has not run, at random; None where the values of the space cannot be listed."""
        free = free_points(self._space.parameters, self._ran, most=LARGEST_LISTED)
        if not free:
            return None
        generator = np.random.default_rng((self._space.sampler.seed, number))
        return to_optuna(free[generator.integers(len(free))])

    def _tell(self, trial: TrialRecord) -> None:
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

    def _told(self, trial: TrialRecord) -> SamplerTrial | None:
        return told(trial, self._space.sampler.type, worst=self._worst, epoch=self._epoch)

    def _common_epoch(self) -> int | None:
        if not self._reached:
            return None
        counts = {level: len(numbers) for level, numbers in self._reached.items()}
        # As many as TPE wants to have seen before it models.
        return common_epoch(counts, enough=self._space.sampler.n_startup_trials)

    def _note_reached(self, trial: TrialRecord) -> None:
        for level, numbers in self._reached.items():
            if trial.epochs >= level and math.isfinite(trial.values[level - 1]):
                numbers.add(trial.number)

    def _complete(self, enqueued: Enqueued) -> Proposal:
        """Draw what an enqueued trial leaves open."""
        if self._stale:
            self._renew()
        trial = self._draw(enqueued.number, 0, enqueued.params)
        self._last_number = enqueued.number
        frozen = self._note_drawn(enqueued.number, trial)
        return self._proposal(frozen, self._memory_of(frozen), enqueued.number, enqueued)

    def _proposal(
        self, frozen: FrozenTrial, memory: Mapping[str, Any], number: int, enqueued: Enqueued | None = None
    ) -> Proposal:
        params = {name: plain_number(value) for name, value in frozen.params.items()}
        return Proposal(
            params=params,
            distributions=frozen.distributions,
            memory=memory,
            origin=make_origin(self._space, params, version=self._versions.number, number=number),
            enqueued=enqueued,
        )

    def _note_drawn(self, number: int, trial: optuna.Trial) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._view[number] = trial_id
        return self._storage.get_trial(trial_id)

    def _memory_of(self, frozen: FrozenTrial) -> dict[str, Any]:
        remembers = self._space.sampler.type in _REMEMBER
        return {key: value for key, value in frozen.system_attrs.items() if remembers and key != FIXED_PARAMS}

    def _draw(self, number: int, attempt: int, row: Mapping[str, Any] | None = None) -> optuna.Trial:
        """A draw of the sampler, or ``row`` where there is one."""
        self._study.sampler = make_sampler(self._space, number, attempt=attempt)
        if row is not None:
            self._study.enqueue_trial(dict(row))
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
        self._said: dict[int, SamplerTrial] = {}
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._view: dict[int, int] = {}
        for trial in self._background:
            self._add(trial)
        self._said.clear()  # Those were another search's numbers.
        self._worst = None
        for trial in self._inside():
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
            begun = max((trial.memory.get(key, 0) for trial in self._inside()), default=0)
            for generation in range(1, begun + 1):
                sampler.get_parent_population(self._study, generation)

    def _add(self, trial: TrialRecord) -> int:
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
        return self._storage.create_new_trial(self._study_id, template_trial=template)

    def _template(self, trial: TrialRecord, **outcome: Any) -> FrozenTrial:
        return self._trial(trial.parameters, system_attrs=dict(trial.memory), **outcome)

    def _trial(self, params: Mapping[str, Any], **outcome: Any) -> FrozenTrial:
        distributions = {name: self._distributions[name] for name in params}
        return create_trial(params=dict(params), distributions=distributions, **outcome)

    def _note_worst(self, trial: TrialRecord) -> None:
        if trial.state.is_final and math.isfinite(trial.value):
            worse = min if trial.maximize else max
            self._worst = trial.value if self._worst is None else worse(self._worst, trial.value)


def most_telling(trials: Sequence[TrialRecord]) -> frozenset[int]:
    """Numbers of what a bounded view keeps: what runs, the best that do not, the latest of the rest."""
    resting = [trial for trial in trials if trial.state.is_final or trial.state is TrialState.PAUSED]
    best = {trial.number for trial in sorted(resting, key=TrialRecord.rank_key)[:KEEP_BEST]}
    rest = [trial.number for trial in resting if trial.number not in best][-KEEP_LATEST:]
    dropped = {trial.number for trial in resting} - best - set(rest)
    return frozenset(trial.number for trial in trials if trial.number not in dropped)
