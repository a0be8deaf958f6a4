"""Draw the parameters of new trials, and learn from the results that trials report.

The sampler is one of Optuna's. It reads a study in memory (:class:`.SamplerView`), which is built from the
record. That study has a bounded number of trials, because the cost of TPE grows with it.

The draw of trial n depends on the space, n and the results reported before it. It does not depend on any
state that is lost when a driver dies.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from tune_rescon.config import TrialState, plain_number
from tune_rescon.spaces import (
    Space,
    can_have,
    count_points,
    free_points,
    from_optuna,
    pending_rows,
    point_key,
    random_points,
    to_optuna,
    trial_config,
    with_parents,
)
from tune_rescon.tuning.optuna_samplers import SamplerView
from tune_rescon.tuning.space_versions import SpaceVersions
from tune_rescon.tuning.study import FIXED_PARAMS
from tune_rescon.tuning.trial import Enqueued, Proposal, TrialRecord, make_origin

__all__ = ["SearchSampler", "most_informative"]


#: Samplers whose cost grows with the number of trials that they read, and that do not need whole generations.
_BOUNDED: Final = ("tpe", "gp")

#: Samplers that store attributes on a trial, such as its generation.
_STATEFUL: Final = ("cmaes", "nsga2")

#: Number of trials that a bounded view keeps: the best of the ended and paused trials, and the latest of the
#: others.
VIEW_BEST: Final = 100
VIEW_LATEST: Final = 300

#: Number of trials after which the trials of a bounded view are chosen again. The choice is stored on the
#: next drawn trial, because the rank of a paused trial may have improved when the search is resumed.
CHOOSE_EVERY: Final = 200
_KEPT: Final = "view_kept"

#: Maximum number of draws for one trial while its draws are known not to fit into memory.
ATTEMPTS: Final = 20

#: Number of draws that repeat an earlier point before a point that has not run is chosen at random. A model
#: that is certain of its best point returns that point every time.
REPEATED_DRAWS: Final = 5

#: Number of uniform draws for a new point that keeps to the constraints, if the sampler finds none.
RANDOM_DRAWS: Final = 1000

#: Largest number of points for which the space is checked for exhaustion. No search exhausts a larger space.
MAX_LISTED: Final = 10_000

Infeasible = Callable[[Mapping[str, Any]], bool]


class SearchSampler:
    """Draws trials, and learns from the results that trials report."""

    def __init__(
        self,
        space: Space,
        *,
        initial_points: Sequence[Mapping[str, Any]] = (),
        warm_start_trials: Sequence[TrialRecord] = (),
        existing_trials: Iterable[TrialRecord] = (),
        forgotten: Iterable[int] = (),
        versions: SpaceVersions | None = None,
        violation: Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        """Set up a sampler for a search that may already have trials.

        Args:
            space: The space to draw from.
            initial_points: Parameters of trials to run before any trial is drawn, as Optuna stores them.
                Points that have already run are not run again.
            warm_start_trials: Ended trials of an earlier search, from which the sampler learns.
            existing_trials: The trials of this search, in the order of their numbers.
            forgotten: The numbers of existing trials from which the sampler must not learn. Their points may
                run again.
            versions: The spaces that the search has had, with ``space`` as the newest. None if ``space`` is
                the only one.
            violation: Returns why a configuration, given as plain values, must not be trained, or None. None
                if the space has no constraints.
        """
        self._space = space
        self._versions = versions or SpaceVersions(spaces=(space,))
        self._like_newest = self._versions.like_newest
        self._violation = violation
        self._translated: dict[int, Mapping[str, Any] | None] = dict.fromkeys(forgotten)
        """For trials of other versions of the space: their parameters in the current one, or None."""
        self._warm_start_trials = [
            translated for trial in warm_start_trials if (translated := self._warm_start_trial(trial))
        ]
        self._trials = {trial.number: self._in_current_space(trial) for trial in existing_trials}
        self._ran = Counter(self._key(trial.parameters) for trial in self._usable())
        grid = space.sampler.type == "grid"
        self._rows = [row for row in initial_points if not grid or self._keeps_to_constraints(row)]
        self._pending = self._pending_rows()
        self._points = count_points(space.parameters, most=MAX_LISTED)
        # Trials that other programs added have numbers that are unknown here: see on_trial_start.
        self._next = max(self._trials, default=-1) + 1
        self._drawn_number = self._next
        self._chosen_at, self._kept = self._recorded_choice()
        self._view = self._make_view()

    def ask(
        self, infeasible: Infeasible | None = None, *, enqueued: Enqueued | None = None
    ) -> Proposal | None:
        """Draw the next trial, or draw the parameters that an enqueued trial does not give.

        Args:
            infeasible: Returns whether a configuration, given as plain values, is known to run out of memory.
                An infeasible draw is repeated, at most :data:`ATTEMPTS` times. An initial point or a point of
                a grid is never replaced, so the caller must check the proposal.
            enqueued: A trial of another program. None to draw a new trial.

        Returns:
            The proposal. None if every point of the space that keeps to the constraints has run, unless
            ``sampler.repeats`` is set or a trial is enqueued.
        """
        if enqueued is not None:
            return self._ask_enqueued(enqueued, infeasible)
        row = self._next_row()
        if row is None and self._is_exhausted:
            return None
        chooses = self._bounded and self._next // CHOOSE_EVERY > self._chosen_at // CHOOSE_EVERY
        if chooses:
            self._chosen_at, self._kept = self._next, most_informative(self._usable())
        if self._view.is_outdated or chooses:
            self._view = self._make_view()
        drawn = self._draw_new(self._next, infeasible) if row is None else self._view.draw(self._next, 0, row)
        if drawn is None:
            return None
        number, self._next = self._next, self._next + 1
        return self._proposal(drawn, number, kept=self._kept if chooses else None)

    def _ask_enqueued(self, enqueued: Enqueued, infeasible: Infeasible | None) -> Proposal:
        if self._view.is_outdated:
            self._view = self._make_view()
        number, seed = enqueued.number, self._space.sampler.seed
        given = with_parents(self._space, enqueued.params, seed=seed, number=number)
        # If no other point has these values, a point runs again, because its values were requested.
        trial = self._draw_new(number, infeasible, given) or self._view.draw(number, 0, given)
        self._pending = self._pending_rows(self._key(trial.params))
        return self._proposal(trial, number, enqueued=enqueued)

    @property
    def view_trials(self) -> Sequence[FrozenTrial]:
        """The trials that the sampler learns from, as Optuna sees them."""
        return self._view.trials

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Return whether a trial of this space can have ``params``, which may omit parameters."""
        return can_have(self._space, params)

    def on_trial_start(self, trial: TrialRecord) -> None:
        """Register the drawn trial after it was recorded.

        Its number is higher than the expected one if other programs have added trials.
        """
        self._trials[trial.number] = trial
        self._view.renumber(self._drawn_number, trial.number)
        if _KEPT in trial.sampler_state:
            self._chosen_at = trial.number
        self._next = max(self._next, trial.number + 1)
        self._ran[self._key(trial.parameters)] += 1

    def on_epoch(self, trial: TrialRecord) -> None:
        """Learn from an epoch of a trial that continues or pauses."""
        trial = self._trials[trial.number] = self._in_current_space(trial)
        if self._is_usable(trial):
            self._view.tell(trial)

    def on_trial_end(self, trial: TrialRecord) -> None:
        """Learn from a trial that ended permanently."""
        self.on_epoch(trial)
        if self._is_usable(trial):
            self._view.update_worst(trial)

    def _in_current_space(self, trial: TrialRecord) -> TrialRecord:
        """Return a trial with its parameters in the current space; see :meth:`_is_usable`.

        A trial of another version of the space loses its sampler state, because a generation of another space
        has no meaning in this one.
        """
        if trial.origin is not None and trial.origin.space in self._like_newest:
            return trial
        if trial.number not in self._translated:
            self._translated[trial.number] = trial.parameters_in(self._space, first=self._space)
        parameters = self._translated[trial.number]
        if parameters is None or trial.origin is None:
            return trial
        state = {key: value for key, value in trial.sampler_state.items() if key == _KEPT}
        return dataclasses.replace(trial, parameters=parameters, sampler_state=state)

    def _warm_start_trial(self, trial: TrialRecord) -> TrialRecord | None:
        """Return a trial of an earlier search with its parameters in the current space.

        Its recorded parameters are those in the first version of the space. Return None if the current space
        does not contain it.
        """
        if 1 in self._like_newest:
            return trial
        parameters = trial.parameters_in(self._space, first=self._versions.spaces[0])
        return None if parameters is None else dataclasses.replace(trial, parameters=parameters)

    def _is_usable(self, trial: TrialRecord) -> bool:
        """Return whether the current space can draw the trial. The sampler learns only from such trials."""
        return self._translated.get(trial.number, trial.parameters) is not None

    def _usable(self) -> tuple[TrialRecord, ...]:
        return tuple(trial for trial in self._trials.values() if self._is_usable(trial))

    def _key(self, parameters: Mapping[str, Any]) -> frozenset[tuple[str, Hashable]]:
        return point_key(self._space.parameters, parameters)

    def _pending_rows(self, *starting: Hashable) -> list[Mapping[str, Any]]:
        """Return the rows that have not run in this round; ``starting`` are keys of trials that start now."""
        ran = self._ran + Counter(starting)
        pending = pending_rows(self._rows, ran, self._key)
        while self._repeats_grid and not pending:
            pending = pending_rows(self._rows, ran, self._key)
        return pending

    def _next_row(self) -> Mapping[str, Any] | None:
        if not self._pending and self._repeats_grid:
            self._pending = self._pending_rows()
        return self._pending.pop(0) if self._pending else None

    @property
    def _repeats_grid(self) -> bool:
        return self._space.sampler.type == "grid" and self._space.sampler.repeats

    @property
    def _is_exhausted(self) -> bool:
        return not self._space.sampler.repeats and len(self._ran) == self._points

    def _keeps_to_constraints(self, params: Mapping[str, Any]) -> bool:
        return self._violation is None or self._violation(self._config(params)) is None

    def _draw_new(
        self, number: int, infeasible: Infeasible | None, given: Mapping[str, Any] | None = None
    ) -> optuna.Trial | None:
        """Draw a trial that keeps to the constraints; one that fits and is new, if the sampler finds one.

        Args:
            number: The number of the trial.
            infeasible: See :meth:`ask`.
            given: The values of an enqueued trial, which may omit parameters. None to draw all of them.

        Returns:
            The trial. None if no point is left that keeps to the constraints and may run.
        """
        repeated = 0
        for attempt in range(ATTEMPTS):
            trial = self._view.draw(number, attempt, given)
            if not self._may_run(trial.params):
                repeated += 1
            elif self._keeps_to_constraints(trial.params) and (
                infeasible is None or attempt == ATTEMPTS - 1 or not infeasible(self._config(trial.params))
            ):
                return trial
            self._view.discard(trial)
            if repeated == REPEATED_DRAWS:
                break
        point = self._free_point(number, given or {}) or (None if given else self._random_point(number))
        return None if point is None else self._view.draw(number, ATTEMPTS, point)

    def _may_run(self, params: Mapping[str, Any]) -> bool:
        """Return whether a point has not run, or may run again."""
        return self._space.sampler.repeats or not self._ran[self._key(params)]

    def _config(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return trial_config(self._space, from_optuna(self._space, params)).to_dict()

    def _free_point(self, number: int, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a random point with the ``given`` values that has not run and keeps to the constraints.

        Return None if the points of the space cannot be listed or none is left.
        """
        free = map(to_optuna, free_points(self._space.parameters, self._ran, most=MAX_LISTED))
        values = self._key(given)
        kept = [point for point in free if values <= self._key(point) and self._keeps_to_constraints(point)]
        if not kept:
            return None
        generator = np.random.default_rng((self._space.sampler.seed, number))
        return kept[generator.integers(len(kept))]

    def _random_point(self, number: int) -> Mapping[str, Any] | None:
        """Return a uniformly random point that may run and keeps to the constraints, or None if no draw does.

        A space with a continuous parameter may have single points too, in branches without that parameter.
        """
        if self._points is not None and not self._space.sampler.repeats:
            return None
        seed = int(np.random.SeedSequence((self._space.sampler.seed, number)).generate_state(1)[0])
        drawn = map(to_optuna, islice(random_points(self._space, seed=seed), RANDOM_DRAWS))
        return next((p for p in drawn if self._may_run(p) and self._keeps_to_constraints(p)), None)

    def _proposal(
        self,
        drawn: optuna.Trial,
        number: int,
        *,
        enqueued: Enqueued | None = None,
        kept: frozenset[int] | None = None,
    ) -> Proposal:
        """Register a drawn trial, and return it; ``kept`` are the trials that the view keeps from now on."""
        self._drawn_number = number
        frozen = self._view.register(number, drawn)
        is_stateful = self._space.sampler.type in _STATEFUL
        state = {
            key: value for key, value in frozen.system_attrs.items() if is_stateful and key != FIXED_PARAMS
        }
        if kept is not None:
            state[_KEPT] = sorted(kept)
        params = {name: plain_number(value) for name, value in frozen.params.items()}
        return Proposal(
            params=params,
            distributions=frozen.distributions,
            sampler_state=state,
            origin=make_origin(
                self._space,
                params,
                version=self._versions.number,
                number=number,
                enqueued=enqueued is not None,
            ),
            enqueued=enqueued,
        )

    @property
    def _bounded(self) -> bool:
        return self._space.sampler.type in _BOUNDED

    def _recorded_choice(self) -> tuple[int, frozenset[int]]:
        """Return the number of the trial before which an earlier run last chose trials, and those trials.

        Before the first choice, return 0 and no trials. The trial at a multiple of :data:`CHOOSE_EVERY` may
        be another program's, or one of a sampler whose view is not bounded.
        """
        kept = {
            number: trial.sampler_state[_KEPT]
            for number, trial in self._trials.items()
            if _KEPT in trial.sampler_state
        }
        last = max(kept, default=None)
        return (0, frozenset()) if last is None else (last, frozenset(kept[last]))

    def _make_view(self) -> SamplerView:
        """Return a view of the trials kept at the last choice and all later trials."""
        trials = self._usable()
        later = self._chosen_at - self._chosen_at % CHOOSE_EVERY
        shown = frozenset(
            trial.number
            for trial in trials
            if not self._bounded or trial.number >= later or trial.number in self._kept
        )
        return SamplerView(
            self._space,
            warm_start_trials=self._warm_start_trials,
            trials=trials,
            shown=shown,
            next_number=self._next,
        )


def most_informative(trials: Sequence[TrialRecord]) -> frozenset[int]:
    """Return the numbers of the trials that a bounded view keeps.

    These are the running trials, the best of the ended and paused trials, and the latest of the rest.
    """
    resting = [trial for trial in trials if trial.state.is_final or trial.state is TrialState.PAUSED]
    best = {trial.number for trial in sorted(resting, key=TrialRecord.rank_key)[:VIEW_BEST]}
    rest = [trial.number for trial in resting if trial.number not in best][-VIEW_LATEST:]
    dropped = {trial.number for trial in resting} - best - set(rest)
    return frozenset(trial.number for trial in trials if trial.number not in dropped)
