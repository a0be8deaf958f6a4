"""DEHB: Hyperband, with configurations chosen by differential evolution."""

from __future__ import annotations

import math
from importlib import import_module
from tempfile import TemporaryDirectory

from contest.ask_tell import REDUCTION_FACTOR, AskTellRival, Question, configuration_space
from contest.contestant import Contest, Library

__all__ = ["DEHB", "Dehb"]

DEHB = Library(requirement="DEHB>=0.1.1", install="'DEHB>=0.1.1'")


class Dehb(AskTellRival):
    """``DEHB`` with its defaults."""

    def __init__(self, contest: Contest) -> None:
        """Make the optimizer, which keeps its log in a temporary directory."""
        super().__init__(contest)
        self._files = TemporaryDirectory(prefix="dehb-", ignore_cleanup_errors=True)
        self._optimizer = import_module("dehb").DEHB(
            cs=configuration_space(contest),
            min_fidelity=1,
            max_fidelity=contest.table.last,
            eta=REDUCTION_FACTOR,
            n_workers=1,  # processes that DEHB itself would start; the simulator's workers ask and tell
            seed=contest.seed,
            output_path=self._files.name,
            save_freq="end",
            log_level="ERROR",
        )

    def ask(self) -> Question:
        job = self._optimizer.ask()
        return Question(
            configuration=int(job["config_id"]),
            parameters=dict(job["config"]),
            fidelity=float(job["fidelity"]),
            job=job,
        )

    def tell(self, question: Question, value: float | None) -> None:
        fitness = math.inf if value is None else 1 - value
        self._optimizer.tell(question.job, {"fitness": fitness, "cost": question.fidelity})
