"""The questions, and who answers each; the first of a question is what the product does.

The product has no switch for what these settled. Where a rival does otherwise, the product's own function or
constant is replaced for the time of one search, in the process that runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from unittest.mock import patch

from optuna.trial import TrialState as OptunaState

from contest.rivals import OneEpochThenTopK, Rival, changed, ours, plain_ray
from tune_rescon.config import TrialState
from tune_rescon.spaces import Space
from tune_rescon.testing import SearchPolicy, SimulatedSearch
from tune_rescon.tuning import SuccessiveHalving, TrialRecord, optuna_samplers, sampler
from tune_rescon.tuning.optuna_samplers import SamplerTrial, sampler_trial
from tune_rescon.tuning.stopping.from_space import possible_rungs

__all__ = ["ON_THE_CLOCK", "PLAIN", "QUESTIONS", "Answer", "search_on_the_clock"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A rival, and what the sampler does otherwise while it searches."""

    rival: Rival = ours
    outcome: Callable[..., SamplerTrial | None] = sampler_trial
    """What the sampler learns from a trial."""
    keep_best: int = sampler.VIEW_BEST
    """How many of the best trials the sampler's view keeps."""

    @contextmanager
    def search(self, space: Space) -> Iterator[SearchPolicy]:
        """The search, for as long as the change holds."""
        with (
            patch.object(optuna_samplers, "sampler_trial", self.outcome),
            patch.object(sampler, "VIEW_BEST", self.keep_best),
        ):
            yield self.rival(space)


def stopped_as_pruned(
    trial: TrialRecord, sampler: str, *, worst: float | None, epoch: int
) -> SamplerTrial | None:
    """Ranked by how far it came, then by its last value: Optuna's own rule, and the study's state."""
    del epoch
    ended_early = trial.state is TrialState.STOPPED
    return sampler_trial(trial, sampler, worst=worst, epoch=trial.epochs + 1 if ended_early else None)


def stopped_as_complete(
    trial: TrialRecord, sampler: str, *, worst: float | None, epoch: int
) -> SamplerTrial | None:
    """With its last value, as if it had trained to the end: what Ray's OptunaSearch does."""
    del epoch
    return sampler_trial(trial, sampler, worst=worst)


def diverged(outcome: SamplerTrial) -> Callable[..., SamplerTrial | None]:
    """A diverged trial told as ``outcome``."""

    def tell(trial: TrialRecord, sampler: str, *, worst: float | None, epoch: int) -> SamplerTrial | None:
        if trial.state is TrialState.DIVERGED:
            return outcome
        return sampler_trial(trial, sampler, worst=worst, epoch=epoch)

    return tell


def minimum(values: int) -> Rival:
    """Ours, with rungs that stop no trial before they hold a given number of values."""

    def rival(space: Space) -> SearchPolicy:
        def rule() -> SuccessiveHalving:
            return SuccessiveHalving(
                rungs=possible_rungs(space),
                reduction_factor=space.scheduler.reduction_factor,
                maximize=True,
                minimum=values,
            )

        return SimulatedSearch(space, rule=rule).policy()

    return rival


RANDOM: Final = {"type": "random"}

#: Number of trials that no search on the clock reaches.
UNLIMITED: Final = 100_000

#: Ray's own classes; its results have a way of their own to name the best trial.
PLAIN: Final = "plain Ray Tune"

QUESTIONS: Final[Mapping[str, Mapping[str, Answer]]] = {
    "rivals": {
        "ours, stop": Answer(),
        "ours, auto": Answer(rival=changed(scheduler={"type": "auto"})),
        "ours, promote": Answer(rival=changed(scheduler={"variant": "promote"})),
        PLAIN: Answer(rival=plain_ray),
        "random + our ASHA": Answer(rival=changed(sampler=RANDOM)),
        "random, full budget": Answer(rival=changed(sampler=RANDOM, scheduler={"type": "none"})),
        "one epoch, then top 8": Answer(rival=lambda space: OneEpochThenTopK(space, 8)),
    },
    "stopped": {
        "as of one rung": Answer(),
        "PRUNED": Answer(outcome=stopped_as_pruned),
        "COMPLETE": Answer(outcome=stopped_as_complete),
    },
    "diverged": {
        "PRUNED without a value": Answer(),
        "FAIL": Answer(outcome=diverged(SamplerTrial(state=OptunaState.FAIL))),
        "COMPLETE, worst": Answer(outcome=diverged(SamplerTrial(state=OptunaState.COMPLETE, values=(0.0,)))),
    },
    "minimum": {
        "3 (reduction factor)": Answer(),
        "2": Answer(rival=minimum(2)),
        "6": Answer(rival=minimum(6)),
    },
    "group_by": {
        "none": Answer(),
        "image_size": Answer(rival=changed(scheduler={"group_by": "image_size"})),
    },
    "first_rung": {
        "1": Answer(),
        "3": Answer(rival=changed(fidelity={"min": 3})),
        "9": Answer(rival=changed(fidelity={"min": 9})),
        "9, random": Answer(rival=changed(fidelity={"min": 9}, sampler=RANDOM)),
    },
    "window": {
        "best 100 + latest 300": Answer(),
        "all": Answer(keep_best=10**9),
    },
}

#: Searches that end after the same seconds: what each has otherwise in its space.
ON_THE_CLOCK: Final[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
    "ours, auto": {"scheduler": {"type": "auto"}},
    "ours, stop": {},
    "ours, promote": {"scheduler": {"variant": "promote"}},
    "random, full trainings": {"sampler": RANDOM, "scheduler": {"type": "none"}},
}


def search_on_the_clock(
    space: Space, name: str, clock: Callable[[], float], *, seconds: float, workers: int
) -> SearchPolicy:
    """Return a search of :data:`ON_THE_CLOCK`, with no other limit than its seconds."""
    sections = {"budget": {"trials": UNLIMITED, "hours": seconds / 3600}, **ON_THE_CLOCK[name]}
    updated = {key: getattr(space, key).model_copy(update=dict(keys)) for key, keys in sections.items()}
    return SimulatedSearch(space.model_copy(update=updated), clock=clock, slots=workers).policy()
