"""Draw the parameters of new trials with an Optuna sampler over a separate in-memory study, the view.

The sampler does not use the durable study for two reasons. Sampling on it costs a query for each trial and a
transaction for each parameter. Also, the state that it must record for a stopped trial is not the state that
a sampler should learn from (:func:`.told`). The view is rebuilt from the record when a search is resumed. It
is bounded, because the cost of TPE grows with the number of trials that it reads.

The draw of trial n depends on the space, n and the results reported before it. It does not depend on any
state that is lost when a driver dies.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
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
    random_points,
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
    "most_informative",
]


#: Samplers whose cost grows with the number of trials that they read, and that do not need whole generations.
_BOUNDED: Final = ("tpe", "gp")

#: Samplers that store on a trial the generation to which it belongs.
_REMEMBER: Final = ("cmaes", "nsga2")

#: Number of trials that a bounded view keeps when it is rebuilt: the best of the ended and paused trials, and
#: the latest of the others.
KEEP_BEST: Final = 100
KEEP_LATEST: Final = 300

#: The trials that a bounded view keeps are chosen again before every trial whose number is a multiple of
#: this. The choice is stored on that trial, because the rank of a paused trial may have improved by the time
#: that a search is resumed.
RENEW_EVERY: Final = 200
_KEPT: Final = "view_kept"

#: Maximum number of draws for one trial while its draws are known not to fit into memory.
ATTEMPTS: Final = 20

#: Number of draws that repeat an earlier point before a point that has not run is chosen at random. A model
#: that is certain of its best point returns that point every time.
REPEATED_DRAWS: Final = 5

#: Uniform draws in which a network that keeps to the constraints is looked for, if the sampler finds none.
RANDOM_DRAWS: Final = 1000

#: Largest number of points for which the space is checked for exhaustion. No search exhausts a larger space.
LARGEST_LISTED: Final = 10_000

Infeasible = Callable[[Mapping[str, Any]], bool]


class SearchSampler:
    """Draws trials, and learns from the results that trials report."""

    def __init__(
        self,
        space: Space,
        *,
        rows: Sequence[Mapping[str, Any]] = (),
        background: Sequence[TrialRecord] = (),
        known: Iterable[TrialRecord] = (),
        versions: SpaceVersions | None = None,
        violation: Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        """Set up a sampler for a search that may already have trials.

        Args:
            space: The space to draw from.
            rows: Parameters of trials to run before any trial is drawn, in Optuna's representation. Rows that
                have already run are not run again.
            background: Ended trials of an earlier search, from which the sampler learns.
            known: The trials of this search, in the order of their numbers.
            versions: The spaces that the search has had, with ``space`` as the newest. None if ``space`` is
                the only one.
            violation: Returns why a configuration, given as plain values, must not be trained, or None. None
                if the space has no constraints.
        """
        self._space = space
        self._versions = versions or SpaceVersions(spaces=(space,))
        self._alike = self._versions.alike
        self._violation = violation
        self._distributions = distributions(space)
        self._placed: dict[int, Mapping[str, Any] | None] = {}
        self._background = [trial for each in background if (trial := self._placed_background(each))]
        self._known = {trial.number: self._as_of_now(trial) for trial in known}
        self._ran = Counter(self._key(trial.parameters) for trial in self._inside())
        grid = space.sampler.type == "grid"
        self._rows = [row for row in rows if not grid or self._keeps_to_constraints(row)]
        self._pending = self._pending_rows()
        self._points = count_points(space.parameters, most=LARGEST_LISTED)
        compares = space.sampler.type in READS_PRUNED and space.metric.against is None
        self._reached: dict[int, set[int]] = {level: set() for level in rung_levels(space) if compares}
        for trial in self._inside():
            self._note_reached(trial)
        self._worst: float | None = None
        # The numbers of trials that other programs added are unknown here. opened() corrects for them.
        self._next = max(self._known, default=-1) + 1
        self._last_number = self._next
        self._kept = self._noted_kept()
        self._renew()

    def ask(
        self, infeasible: Infeasible | None = None, *, enqueued: Enqueued | None = None
    ) -> Proposal | None:
        """Draw the next trial, or complete an enqueued trial.

        Args:
            infeasible: Returns whether a configuration, given as plain values, is known to run out of memory.
                An infeasible draw is repeated, at most :data:`ATTEMPTS` times. A row is never replaced, so
                the caller must check the proposal.
            enqueued: A trial whose missing parameters are drawn. None to draw a new trial.

        Returns:
            The proposal. None if every point of the space that keeps to the constraints has run, unless
            ``sampler.repeats`` is set or a trial is enqueued.
        """
        if enqueued is not None:
            return self._complete(enqueued)
        row = self._next_row()
        if row is None and self._is_exhausted:
            return None
        chooses = self._bounded and self._next % RENEW_EVERY == 0
        if chooses:
            self._kept = most_informative(self._inside())
        if self._stale or chooses:
            self._renew()
        trial = self._draw(self._next, 0, row) if row is not None else self._draw_new(self._next, infeasible)
        if trial is None:
            return None
        number, self._next = self._next, self._next + 1
        self._last_number = number
        frozen = self._register(number, trial)
        memory = self._memory_of(frozen)
        if chooses and self._kept:
            memory[_KEPT] = sorted(self._kept)
        return self._proposal(frozen, memory, number)

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Return whether ``params``, which may omit parameters, contains only values of this space."""
        try:
            self._trial(params, state=OptunaState.RUNNING)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Register the drawn trial after it was recorded.

        Its number is higher than the expected one if other programs have added trials.
        """
        self._known[trial.number] = trial
        if trial.number not in self._view:
            self._view[trial.number] = self._view.pop(self._last_number)
        self._next = max(self._next, trial.number + 1)
        self._ran[self._key(trial.parameters)] += 1

    def on_epoch(self, trial: TrialRecord) -> None:
        """Learn from an epoch of a trial that continues or pauses."""
        trial = self._known[trial.number] = self._as_of_now(trial)
        if self._is_inside(trial):
            self._note_reached(trial)
            self._tell(trial)

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Learn from a trial that ended permanently."""
        self.on_epoch(trial)
        if self._is_inside(trial):
            self._note_worst(trial)

    def _as_of_now(self, trial: TrialRecord) -> TrialRecord:
        """Return a trial with its parameters in the current space; see :meth:`_is_inside`.

        A trial of another version of the space loses the sampler's notes on it, because a generation of
        another space has no meaning in this one.
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
        """Return a trial of an earlier search with its parameters in the current space.

        The trial was placed in the first version of the space. Return None if the current space does not
        contain it.
        """
        if 1 in self._alike:
            return trial
        parameters = self._place(trial, self._versions.spaces[0])
        return None if parameters is None else dataclasses.replace(trial, parameters=parameters)

    def _place(self, trial: TrialRecord, of: Space) -> Mapping[str, Any] | None:
        """Return the parameters of a trial in the current space, or None if the space does not contain it.

        ``of`` is the space that a trial without an origin was drawn from.
        """
        origin = trial.origin or find_origin(of, trial.parameters, version=1, number=trial.number)
        sampled = place_config(self._space, origin.config).sampled if origin else None
        return None if sampled is None else to_optuna(sampled)

    def _is_inside(self, trial: TrialRecord) -> bool:
        """Return whether the current space can draw the trial. The sampler learns only from such trials."""
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

    def _keeps_to_constraints(self, params: Mapping[str, Any]) -> bool:
        return self._violation is None or self._violation(self._config(params)) is None

    def _draw_new(self, number: int, infeasible: Infeasible | None) -> optuna.Trial | None:
        """Draw a trial that keeps to the constraints; one that fits and is new, if the sampler finds one.

        Returns:
            The trial. None if no point is left that keeps to the constraints.
        """
        repeated = 0
        for attempt in range(ATTEMPTS):
            trial = self._draw(number, attempt)
            if not self._space.sampler.repeats and self._ran[self._key(trial.params)]:
                repeated += 1
            elif self._keeps_to_constraints(trial.params) and (
                infeasible is None or attempt == ATTEMPTS - 1 or not infeasible(self._config(trial.params))
            ):
                return trial
            # Samplers ignore failed trials, so this draw has no effect on later draws.
            self._study.tell(trial, state=OptunaState.FAIL)
            if repeated == REPEATED_DRAWS:
                break
        point = self._free_point(number)
        if point is None and self._violation is not None:
            point = self._random_point(number)
            if point is None:
                return None
        return self._draw(number, ATTEMPTS, point)

    def _config(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return trial_config(self._space, from_optuna(self._space, params)).to_dict()

    def _free_point(self, number: int) -> Mapping[str, Any] | None:
        """Return a random point that has not run and keeps to the constraints.

        Returns:
            The point, or None if the points of the space cannot be listed or none is left.
        """
        free = map(to_optuna, free_points(self._space.parameters, self._ran, most=LARGEST_LISTED))
        kept = [point for point in free if self._keeps_to_constraints(point)]
        if not kept:
            return None
        generator = np.random.default_rng((self._space.sampler.seed, number))
        return kept[generator.integers(len(kept))]

    def _random_point(self, number: int) -> Mapping[str, Any] | None:
        """Return a uniformly random point that keeps to the constraints, or None if no draw does."""
        if self._points is not None and not self._space.sampler.repeats:
            return None
        seed = int(np.random.SeedSequence((self._space.sampler.seed, number)).generate_state(1)[0])
        drawn = map(to_optuna, islice(random_points(self._space, seed=seed), RANDOM_DRAWS))
        return next(filter(self._keeps_to_constraints, drawn), None)

    def _tell(self, trial: TrialRecord) -> None:
        """Add the new results of a trial to the view."""
        outcome, trial_id = self._outcome(trial), self._view.get(trial.number)
        new = outcome is not None and trial_id is not None and outcome != self._reported.get(trial.number)
        # Optuna does not allow changes to a reported result, so the view is rebuilt before the next draw.
        self._stale |= self._epoch != self._common_epoch() or (new and trial.number in self._reported)
        if self._stale or not new:
            return
        assert outcome is not None
        assert trial_id is not None
        self._reported[trial.number] = outcome
        for step, value in outcome.steps:
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._storage.set_trial_state_values(trial_id, outcome.state, outcome.values)

    def _outcome(self, trial: TrialRecord) -> SamplerTrial | None:
        return told(trial, self._space.sampler.type, worst=self._worst, epoch=self._epoch)

    def _common_epoch(self) -> int | None:
        if not self._reached:
            return None
        counts = {level: len(numbers) for level, numbers in self._reached.items()}
        # Use the number of trials that TPE needs before it fits a model.
        return common_epoch(counts, enough=self._space.sampler.n_startup_trials)

    def _note_reached(self, trial: TrialRecord) -> None:
        for level, numbers in self._reached.items():
            if trial.epochs >= level and math.isfinite(trial.values[level - 1]):
                numbers.add(trial.number)

    def _complete(self, enqueued: Enqueued) -> Proposal:
        """Draw the parameters that an enqueued trial does not give."""
        if self._stale:
            self._renew()
        trial = self._draw(enqueued.number, 0, enqueued.params)
        self._last_number = enqueued.number
        frozen = self._register(enqueued.number, trial)
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

    def _register(self, number: int, trial: optuna.Trial) -> FrozenTrial:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._view[number] = trial_id
        return self._storage.get_trial(trial_id)

    def _memory_of(self, frozen: FrozenTrial) -> dict[str, Any]:
        remembers = self._space.sampler.type in _REMEMBER
        return {key: value for key, value in frozen.system_attrs.items() if remembers and key != FIXED_PARAMS}

    def _draw(self, number: int, attempt: int, row: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Draw a trial with the sampler, or create a trial with the parameters of ``row`` if it is given."""
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
        """Return the number of the trial before which the kept trials were last chosen."""
        return self._next - self._next % RENEW_EVERY

    def _noted_kept(self) -> frozenset[int]:
        """Return the trials that an earlier run chose to keep. Empty before the first choice."""
        chooser = self._known.get(self._last_choice())
        return frozenset(chooser.memory.get(_KEPT, ())) if chooser else frozenset()

    def _renew(self) -> None:
        """Rebuild the view from the trials kept at the last choice and all later trials."""
        better = StudyDirection.MAXIMIZE if self._space.metric.mode == "max" else StudyDirection.MINIMIZE
        self._storage = optuna.storages.InMemoryStorage()
        directions = [better, *([StudyDirection.MINIMIZE] if self._space.metric.against else [])]
        self._stale, self._epoch = False, self._common_epoch()
        self._reported: dict[int, SamplerTrial] = {}
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._view: dict[int, int] = {}
        for trial in self._background:
            self._add(trial)
        self._reported.clear()  # These numbers belong to another search.
        self._worst = None
        for trial in self._inside():
            if not self._bounded or trial.number >= self._last_choice() or trial.number in self._kept:
                self._view[trial.number] = self._add(trial)
            self._note_worst(trial)
        self._choose_parents()

    def _choose_parents(self) -> None:
        """Make a genetic sampler choose the parents of all started generations again.

        The sampler stores its choice in the study. Once the choice is stored, the sampler crosses the parents
        in another order.
        """
        sampler = make_sampler(self._space, self._next)
        if isinstance(sampler, BaseGASampler):
            key = f"{type(sampler).__name__}:generation"
            begun = max((trial.memory.get(key, 0) for trial in self._inside()), default=0)
            for generation in range(1, begun + 1):
                sampler.get_parent_population(self._study, generation)

    def _add(self, trial: TrialRecord) -> int:
        """Add a trial to the view and return its id in the view."""
        outcome = self._outcome(trial)
        if outcome is None:
            template = self._template(trial, state=OptunaState.RUNNING)
        else:
            self._reported[trial.number] = outcome
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


def most_informative(trials: Sequence[TrialRecord]) -> frozenset[int]:
    """Return the numbers of the trials that a bounded view keeps.

    These are the running trials, the best of the ended and paused trials, and the latest of the rest.
    """
    resting = [trial for trial in trials if trial.state.is_final or trial.state is TrialState.PAUSED]
    best = {trial.number for trial in sorted(resting, key=TrialRecord.rank_key)[:KEEP_BEST]}
    rest = [trial.number for trial in resting if trial.number not in best][-KEEP_LATEST:]
    dropped = {trial.number for trial in resting} - best - set(rest)
    return frozenset(trial.number for trial in trials if trial.number not in dropped)
