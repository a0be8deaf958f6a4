"""The study that a sampler reads: in memory, with the results that the sampler should learn from.

The sampler does not read the durable study for two reasons. Sampling on it costs a query for each trial and a
transaction for each parameter. Also, the state that the durable study must record for a stopped trial is not
the state that a sampler should learn from (:func:`.sampler_trial`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from tune_rescon.spaces import Space, distributions, suggest
from tune_rescon.tuning.optuna_samplers import (
    READS_PRUNED,
    SamplerTrial,
    common_epoch,
    make_sampler,
    sampler_trial,
)
from tune_rescon.tuning.stopping.from_space import possible_rungs
from tune_rescon.tuning.trial import TrialRecord

__all__ = ["SamplerView"]


class SamplerView:
    """An in-memory Optuna study of chosen trials of a search. New trials are drawn on it."""

    def __init__(self, space: Space, *, warm_start_trials: Sequence[TrialRecord] = ()) -> None:
        """Create an empty view; :meth:`rebuild` must follow.

        Args:
            space: The space to draw from.
            warm_start_trials: Ended trials of an earlier search, which are always in the view.
        """
        self._space = space
        self._distributions = distributions(space)
        self._warm_start_trials = warm_start_trials
        compares = space.sampler.type in READS_PRUNED and space.metric.against is None
        self._reached: dict[int, set[int]] = {level: set() for level in possible_rungs(space) if compares}
        self._direction = StudyDirection.MAXIMIZE if space.metric.mode == "max" else StudyDirection.MINIMIZE
        self._worst: float | None = None
        self._is_outdated = False

    @property
    def trials(self) -> Sequence[FrozenTrial]:
        """The trials of the study: the warm-start trials first."""
        return self._study.trials

    @property
    def is_outdated(self) -> bool:
        """True if the view must be rebuilt before the next draw.

        Optuna does not allow changes to a result that was reported, so the view is built from the beginning.
        """
        return self._is_outdated

    def rebuild(self, trials: Sequence[TrialRecord], *, shown: frozenset[int], next_number: int) -> None:
        """Build the study from the warm-start trials and trials of the search.

        Args:
            trials: The trials of the search, in the order of their numbers.
            shown: The numbers of the trials that the study contains. The others only bound the worst value.
            next_number: The number of the next trial to draw.
        """
        self._storage = optuna.storages.InMemoryStorage()
        directions = [self._direction, *([StudyDirection.MINIMIZE] if self._space.metric.against else [])]
        self._is_outdated, self._epoch = False, self._common_epoch()
        self._reported: dict[int, SamplerTrial] = {}
        self._study = optuna.create_study(storage=self._storage, directions=directions)
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        self._ids: dict[int, int] = {}
        self._worst = None
        for trial in self._warm_start_trials:
            self._add(trial)
        self._reported.clear()  # These numbers belong to another search.
        for trial in trials:
            if trial.number in shown:
                self._ids[trial.number] = self._add(trial)
            self.note_worst(trial)
        self._choose_parents(trials, next_number)

    def accepts(self, params: Mapping[str, Any]) -> bool:
        """Return whether ``params``, which may omit parameters, contains only values of the space."""
        try:
            self._frozen(params, state=OptunaState.RUNNING)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def draw(self, number: int, attempt: int, row: Mapping[str, Any] | None = None) -> optuna.Trial:
        """Draw trial ``number``, or create it with the parameters of ``row``, drawing those that it omits.

        The caller must :meth:`register` or :meth:`discard` the trial.
        """
        self._study.sampler = make_sampler(self._space, number, attempt=attempt)
        if row is not None:
            self._study.enqueue_trial(dict(row))
        trial = self._study.ask()
        suggest(self._space, trial)
        return trial

    def discard(self, trial: optuna.Trial) -> None:
        """Leave a drawn trial out. Samplers ignore failed trials, so it has no effect on later draws."""
        self._study.tell(trial, state=OptunaState.FAIL)

    def register(self, number: int, trial: optuna.Trial) -> FrozenTrial:
        """Keep a drawn trial under its number in the search, and return it as Optuna stores it."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        self._ids[number] = trial_id
        return self._storage.get_trial(trial_id)

    def renumber(self, expected: int, number: int) -> None:
        """Move a registered trial to the number that the record gave it."""
        if number not in self._ids:
            self._ids[number] = self._ids.pop(expected)

    def tell(self, trial: TrialRecord) -> None:
        """Add the new results of a registered trial."""
        outcome, trial_id = self._outcome(trial), self._ids.get(trial.number)
        new = outcome is not None and trial_id is not None and outcome != self._reported.get(trial.number)
        changed = new and trial.number in self._reported
        self._is_outdated |= self._epoch != self._common_epoch() or changed
        if self._is_outdated or not new:
            return
        assert outcome is not None
        assert trial_id is not None
        self._reported[trial.number] = outcome
        for step, value in outcome.steps:
            self._storage.set_trial_intermediate_value(trial_id, step, value)
        self._storage.set_trial_state_values(trial_id, outcome.state, outcome.values)

    def note_reached(self, trial: TrialRecord) -> None:
        """Count the rungs that a trial has reached. TPE compares trials at a rung that enough reached."""
        for level, numbers in self._reached.items():
            if trial.epochs >= level and math.isfinite(trial.values[level - 1]):
                numbers.add(trial.number)

    def note_worst(self, trial: TrialRecord) -> None:
        """Take an ended trial into account for the value that diverged trials count as."""
        if trial.state.is_final and math.isfinite(trial.value):
            worse = min if trial.maximize else max
            self._worst = trial.value if self._worst is None else worse(self._worst, trial.value)

    def _common_epoch(self) -> int | None:
        if not self._reached:
            return None
        counts = {level: len(numbers) for level, numbers in self._reached.items()}
        # Use the number of trials that TPE needs before it fits a model.
        return common_epoch(counts, enough=self._space.sampler.n_startup_trials)

    def _outcome(self, trial: TrialRecord) -> SamplerTrial | None:
        return sampler_trial(trial, self._space.sampler.type, worst=self._worst, epoch=self._epoch)

    def _add(self, trial: TrialRecord) -> int:
        """Add a trial to the study and return its id there."""
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
        return self._frozen(trial.parameters, system_attrs=dict(trial.sampler_state), **outcome)

    def _frozen(self, params: Mapping[str, Any], **outcome: Any) -> FrozenTrial:
        used = {name: self._distributions[name] for name in params}
        return create_trial(params=dict(params), distributions=used, **outcome)

    def _choose_parents(self, trials: Sequence[TrialRecord], next_number: int) -> None:
        """Make a genetic sampler choose the parents of all started generations again.

        The sampler stores its choice in the study. Once the choice is stored, the sampler crosses the parents
        in another order.
        """
        sampler = make_sampler(self._space, next_number)
        if isinstance(sampler, BaseGASampler):
            key = f"{type(sampler).__name__}:generation"
            begun = max((trial.sampler_state.get(key, 0) for trial in trials), default=0)
            for generation in range(1, begun + 1):
                sampler.get_parent_population(self._study, generation)
