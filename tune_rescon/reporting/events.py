"""One line per event while a search runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape

from tune_rescon.config import TrialState
from tune_rescon.reporting.words import duration, figure, pairs
from tune_rescon.spaces import Space
from tune_rescon.tuning import TrialSummary, Verdict

__all__ = ["STATE_STYLE", "EventLines"]

#: How each state looks, in lines and tables.
STATE_STYLE: Final = {
    TrialState.RUNNING: "cyan",
    TrialState.FINISHED: "green",
    TrialState.STOPPED: "yellow",
    TrialState.DIVERGED: "magenta",
    TrialState.OUT_OF_MEMORY: "red",
    TrialState.FAILED: "red",
    TrialState.INTERRUPTED: "blue",
    TrialState.PAUSED: "bright_blue",
}


class EventLines:
    """A :class:`tune_rescon.tuning.SearchListener` that prints."""

    def __init__(self, console: Console, space: Space) -> None:
        """Print to ``console`` about a search of ``space``."""
        self._console = console
        self._last_epoch = space.fidelity.max
        self._ended = 0
        self._total = space.budget.trials
        self._paused: set[int] = set()

    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """How much there is to do, and how much is done."""
        self._ended = sum(trial.state.is_final for trial in trials)
        self._paused = {trial.number for trial in trials if trial.state is TrialState.PAUSED}
        before = f", {self._ended} of them ended before" if trials else ""
        self._console.print(
            f"{self._total} trials of at most {self._last_epoch} epochs{before}; the first workers start",
            soft_wrap=True,
        )

    def trial_started(self, trial: TrialSummary) -> None:
        """Its parameters; from which epoch on, if it was promoted or is not begun for the first time."""
        word = "goes on" if trial.number in self._paused else "starts again" if trial.epochs else "starts"
        self._paused.discard(trial.number)
        where = f" after epoch {trial.epochs}" if trial.epochs else ""
        self._print(trial, f"{word}{where}: {escape(pairs(trial.parameters))}")

    def trial_noted(self, trial: TrialSummary, text: str) -> None:
        """Something that a person should know about it."""
        self._print(trial, f"note: {escape(text)}")

    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Its value, and its place at the rung if it came to one."""
        place = f", {verdict.rank} of {verdict.of} at rung {verdict.rung}" if verdict.rung else ""
        self._print(
            trial,
            f"epoch {trial.epochs}/{self._last_epoch}: {trial.metric} {figure(trial.value)},"
            f" train_loss {figure(metrics['train_loss'])}, {duration(metrics['epoch_seconds'])}{place}",
        )

    def trial_ended(self, trial: TrialSummary) -> None:
        """Its fate; of a paused one, that it waits."""
        style = STATE_STYLE[trial.state]
        words = f"[{style}]{trial.state.value}[/{style}] after epoch {trial.epochs}"
        if trial.state is TrialState.PAUSED:
            self._paused.add(trial.number)
            self._print(trial, f"{words}: waits to be promoted")
            return
        self._ended += trial.state.is_final
        best = f", best {figure(trial.best_value)} at epoch {trial.best_epoch}" if trial.best_epoch else ""
        self._print(trial, f"{words}{best}; {self._ended} of {self._total} trials ended")
        if trial.error:
            self._console.print(trial.error.strip(), style="red", markup=False, soft_wrap=True)

    def _print(self, trial: TrialSummary, text: str) -> None:
        # Unwrapped: it stays one line, also where the terminal is narrower.
        self._console.print(f"trial_{trial.number:04d} {text}", soft_wrap=True)
