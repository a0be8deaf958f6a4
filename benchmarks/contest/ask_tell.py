"""Rivals with an ask-and-tell interface: they ask for a configuration and the epochs to train it for.

A configuration that is asked for again, for more epochs, continues from its checkpoint. The libraries leave
that to their user, so this is the best that a user can do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from contest.contestant import Contest, Drawn, RivalPolicy
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter
from tune_rescon.tuning import Decision

__all__ = ["REDUCTION_FACTOR", "AskTellRival", "Question", "configuration_space"]

#: The factor of all successive-halving rivals here.
REDUCTION_FACTOR = 3


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a library asks for."""

    configuration: Hashable
    """Identifies the configuration: the same one may be asked for again."""
    parameters: Mapping[str, Any]
    fidelity: float
    """Epochs; not always a whole number."""
    job: Any
    """What the library wants back with the answer."""


@dataclass(kw_only=True)
class _Trial(Drawn):
    values: list[float] = field(default_factory=list)
    open: list[Question] = field(default_factory=list)
    """Questions without an answer. A trial is on a worker as long as it has any."""
    diverged: bool = False


class AskTellRival(RivalPolicy, ABC):
    """Trains what a library asks for, and tells it the value after the last of these epochs."""

    def __init__(self, contest: Contest) -> None:
        """Begin without a trial."""
        self._last = contest.table.last
        self._trials: list[_Trial] = []
        self._of: dict[Hashable, _Trial] = {}

    @abstractmethod
    def ask(self) -> Question:
        """Return the library's next question."""

    @abstractmethod
    def tell(self, question: Question, value: float | None) -> None:
        """Give the library the value, larger is better; None: the trial diverged."""

    def next_trial(self) -> Drawn:
        while True:
            question = self.ask()
            trial = self._of.get(question.configuration)
            if trial is None:
                trial = _Trial(number=len(self._trials), parameters=question.parameters)
                self._trials.append(trial)
                self._of[question.configuration] = trial
            on_a_worker = bool(trial.open)
            trial.open.append(question)
            if on_a_worker:
                continue  # it trains until the later epoch
            self._answer(trial)
            if trial.open:
                return trial

    def epoch_done(
        self, number: int, epoch: int, metrics: Mapping[str, float], checkpoint: str | None
    ) -> Decision:
        del checkpoint
        trial, value = self._trials[number], metrics["val_accuracy"]
        if epoch > trial.epochs:
            trial.epochs = epoch
            trial.values.append(value)
            trial.diverged = not math.isfinite(value)
            self._answer(trial)
        if trial.diverged:
            return Decision.DIVERGED
        if trial.open:
            return Decision.CONTINUE
        return Decision.FINISH if epoch >= self._last else Decision.PAUSE

    def _answer(self, trial: _Trial) -> None:
        """Answer the questions whose epochs are reached."""
        for question in list(trial.open):
            epochs = min(max(round(question.fidelity), 1), self._last)
            if trial.diverged or epochs <= trial.epochs:
                trial.open.remove(question)
                self.tell(question, None if trial.diverged else trial.values[epochs - 1])


def configuration_space(contest: Contest) -> Any:
    """Return the table's parameters as a ConfigSpace."""
    config_space = import_module("ConfigSpace")
    space = config_space.ConfigurationSpace(seed=contest.seed)
    for name, parameter in contest.table.parameters.items():
        if isinstance(parameter, CategoricalParameter):
            space.add(config_space.Categorical(name, list(parameter.choices)))
        else:
            number = config_space.Integer if isinstance(parameter, IntParameter) else config_space.Float
            space.add(number(name, (parameter.low, parameter.high), log=parameter.log))
    return space
