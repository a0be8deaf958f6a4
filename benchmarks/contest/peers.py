"""Rivals on recorded curves: the real code of other libraries, and simple rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from contest.contestant import Contest, Contestant, Library, space_of
from contest.dehb_rival import DEHB, Dehb
from contest.optuna_rival import OptunaLoop
from contest.rivals import OneEpochThenTopK, plain_ray
from contest.smac_rival import SMAC, Smac
from contest.syne_tune_rival import DYHPO, SYNE_TUNE, SyneTune, SyneTuneDyHPO
from tune_rescon.testing import SearchPolicy, SimulatedSearch

__all__ = ["CONTESTANTS", "Entry"]


def ours(**sections: Mapping[str, object]) -> Contestant:
    """This package's search, with some keys of its space changed."""
    return lambda contest: SimulatedSearch(space_of(contest, **sections)).policy()


def auto(**sections: Mapping[str, object]) -> Contestant:
    """This package's search with the scheduler ``auto``, which is told the budget."""

    def make(contest: Contest) -> SearchPolicy:
        hours = None if contest.seconds is None else contest.seconds / 3600
        budget = {"epochs": contest.epochs, "hours": hours, **sections.get("budget", {})}
        others = {name: keys for name, keys in sections.items() if name != "budget"}
        space = space_of(contest, budget=budget, scheduler={"type": "auto"}, **others)
        return SimulatedSearch(space, clock=contest.clock, slots=contest.workers).policy()

    return make


def one_epoch_then_the_best(k: int) -> Contestant:
    """One epoch each for as many as the budget allows, then the best ``k`` to the end."""

    def make(contest: Contest) -> SearchPolicy:
        count = max(k, contest.budget_epochs - k * (contest.table.last - 1))
        return OneEpochThenTopK(space_of(contest, sampler={"type": "random"}, budget={"trials": count}), k)

    return make


RANDOM = {"type": "random"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant of the table."""

    make: Contestant
    plans: bool = False
    """True if it is told the budget. All others do the same under any budget."""
    needs: Library | None = None
    """The package that it needs and this project does not install."""

    @property
    def is_there(self) -> bool:
        """Whether it can take part here."""
        return self.needs is None or self.needs.is_there


CONTESTANTS: Mapping[str, Entry] = {
    "ours, auto": Entry(make=auto(), plans=True),
    "ours, auto, random draws": Entry(make=auto(sampler=RANDOM), plans=True),
    "ours, asha stop": Entry(make=ours()),
    "ours, asha promote": Entry(make=ours(scheduler={"variant": "promote"})),
    "ours, asha stop, first rung 9": Entry(make=ours(fidelity={"min": 9})),
    "random, full trainings": Entry(make=ours(sampler=RANDOM, scheduler={"type": "none"})),
    "one epoch, then the best 8": Entry(make=one_epoch_then_the_best(8), plans=True),
    "Ray ASHAScheduler + OptunaSearch": Entry(make=lambda contest: plain_ray(space_of(contest))),
    "Optuna TPE + SuccessiveHalvingPruner": Entry(
        make=lambda contest: OptunaLoop(
            contest, optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        )
    ),
    "Optuna TPE + HyperbandPruner": Entry(
        make=lambda contest: OptunaLoop(
            contest,
            optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=contest.table.last, reduction_factor=3
            ),
        )
    ),
    "Syne Tune ASHA": Entry(make=lambda contest: SyneTune(contest, "ASHA"), needs=SYNE_TUNE),
    "Syne Tune BOHB": Entry(make=lambda contest: SyneTune(contest, "BOHB"), needs=SYNE_TUNE),
    "Syne Tune ASHA-CQR": Entry(make=lambda contest: SyneTune(contest, "ASHACQR"), needs=SYNE_TUNE),
    "Syne Tune DyHPO": Entry(make=SyneTuneDyHPO, needs=DYHPO),
    "SMAC": Entry(make=Smac, needs=SMAC),
    "DEHB": Entry(make=Dehb, needs=DEHB),
}
