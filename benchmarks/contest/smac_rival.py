"""SMAC's multi-fidelity facade: Hyperband, with configurations chosen by a random forest."""

from __future__ import annotations

import logging
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

from contest.ask_tell import REDUCTION_FACTOR, AskTellRival, Question, configuration_space
from contest.contestant import Contest, Library

__all__ = ["SMAC", "Smac"]

SMAC = Library(requirement="smac>=2.4,<3", install="'smac>=2.4,<3'")


class Smac(AskTellRival):
    """``MultiFidelityFacade`` with its defaults.

    With one seed it draws the same only if PYTHONHASHSEED is set, too: it iterates over sets.
    """

    def __init__(self, contest: Contest) -> None:
        """Make the facade, which keeps its files in a temporary directory."""
        super().__init__(contest)
        smac = import_module("smac")
        self._history = import_module("smac.runhistory")
        self._files = TemporaryDirectory(prefix="smac-", ignore_cleanup_errors=True)
        # `n_trials` stays at its default, 100. It only bounds the random first design, at a quarter of it.
        scenario = smac.Scenario(
            configuration_space(contest),
            deterministic=True,
            min_budget=1,
            max_budget=contest.table.last,
            seed=contest.seed,
            output_directory=Path(self._files.name),
        )
        self._facade = smac.MultiFidelityFacade(
            scenario,
            _trained_elsewhere,
            intensifier=smac.MultiFidelityFacade.get_intensifier(scenario, eta=REDUCTION_FACTOR),
            overwrite=True,
            logging_level=logging.CRITICAL,
        )
        self._worst = 0.0

    def ask(self) -> Question:
        info = self._facade.ask()
        return Question(
            configuration=info.config, parameters=dict(info.config), fidelity=info.budget, job=info
        )

    def tell(self, question: Question, value: float | None) -> None:
        # Its random forest learns the logarithm of the cost, and no infinite one. A trial that diverged gets
        # the worst cost so far.
        cost = self._worst if value is None else 1 - value
        self._worst = max(self._worst, cost)
        kind = self._history.StatusType
        status = kind.CRASHED if value is None else kind.SUCCESS
        self._facade.tell(question.job, self._history.TrialValue(cost=cost, status=status), save=False)


def _trained_elsewhere(config: object, seed: int, budget: float) -> float:
    """Satisfy the facade, which wants a function although it is asked and told."""
    raise AssertionError(f"the simulator trains, not SMAC: {config}, seed {seed}, budget {budget}")
