"""Who is told what happens in a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.rules.stopping import Verdict

__all__ = ["SearchListener"]


class SearchListener(Protocol):
    """Whoever wants to know what happens. Called on the driver's main thread; may neither block nor raise."""

    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """The search begins, or goes on; ``trials`` is what its record holds already."""

    def trial_started(self, trial: TrialSummary) -> None:
        """A trial was handed out, for the first time or again."""

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """An epoch (``trial.epochs``) was recorded and judged."""

    def trial_noted(self, trial: TrialSummary, text: str) -> None:
        """Something happened to a trial that the user should know."""

    def trial_ended(self, trial: TrialSummary) -> None:
        """A trial was closed, paused or interrupted."""
