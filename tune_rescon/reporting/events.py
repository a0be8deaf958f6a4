"""The lines of a running search, one for each event."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from typing_extensions import override

from tune_rescon.config import TrialState, trial_name
from tune_rescon.errors import counted
from tune_rescon.reporting.formatting import duration, format_number, pairs
from tune_rescon.spaces import Space
from tune_rescon.tuning import Gauges, SearchCallback, TrialRecord, Verdict

__all__ = ["STATE_STYLE", "EventLines", "end_line", "note_line", "start_line"]

#: Seconds between two lines about the progress of one epoch.
PROGRESS_EVERY: Final = 60.0

#: Style of each state, in lines and tables.
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


class EventLines(SearchCallback):
    """Prints a line for each event."""

    def __init__(
        self, console: Console, space: Space, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Print to ``console`` about a search of ``space``; ``clock`` returns seconds."""
        self._clock = clock
        self._printed: dict[int, float] = {}
        self._console = console
        self._last_epoch = space.fidelity.max
        self._ended = 0
        self._total = space.budget.trials
        self._paused: set[int] = set()

    def show_message(self, text: str) -> None:
        """Print a message as a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def on_start(self, gauges: Gauges) -> None:
        """Do nothing: the lines do not show gauges."""

    @override
    def on_search_start(self, trials: Sequence[TrialRecord]) -> None:
        """Print the number of trials, and how many of them ended in an earlier run."""
        # A resume may lower the total below the trials that there are.
        self._total = max(self._total, len(trials))
        self._ended = sum(trial.state.is_final for trial in trials)
        self._paused = {trial.number for trial in trials if trial.state is TrialState.PAUSED}
        before = f", {self._ended} of them ended before" if trials else ""
        self._console.print(
            f"{counted(self._total, 'trial')} of at most {counted(self._last_epoch, 'epoch')}{before};"
            " the first workers start",
            soft_wrap=True,
        )

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        """Print the trial's parameters, and the epoch after which a trial continues or starts again."""
        self._printed[trial.number] = self._clock()
        self._print(start_line(trial, promoted=trial.number in self._paused))
        self._paused.discard(trial.number)

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        """Print a note about the trial."""
        self._print(note_line(trial, text))

    @override
    def on_progress(self, trial: TrialRecord, share: float) -> None:
        """Print the progress of a long epoch, once a minute."""
        now = self._clock()
        if now - self._printed.get(trial.number, now) < PROGRESS_EVERY:
            return
        self._printed[trial.number] = now
        self._print(f"{_name(trial)} epoch {trial.epochs + 1}/{self._last_epoch}: {share:.0%} trained")

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Print the trial's value, and its rank if it reached a rung.

        Args:
            trial: the trial after the epoch.
            metrics: the metrics of the epoch.
            verdict: the rung that the trial reached, if any, and its rank there.
        """
        rank = f", rank {verdict.rank} of {verdict.compared} at rung {verdict.rung}" if verdict.rung else ""
        self._printed[trial.number] = self._clock()
        # The test images are evaluated after the last epoch only.
        value = f"{trial.metric} {format_number(trial.last_value)}, " if trial.metric in metrics else ""
        self._print(
            # The name of a class in a metric's name may look like markup.
            f"{_name(trial)} epoch {trial.epochs}/{self._last_epoch}: {escape(value)}"
            f"train_loss {format_number(metrics['train_loss'])}, {duration(metrics['epoch_seconds'])}{rank}"
        )

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        """Print the trial's state: its final one, or that it waits."""
        if trial.state is TrialState.PAUSED:
            self._paused.add(trial.number)
            self._print(f"{end_line(trial)}: waits to be promoted")
            return
        self._ended += trial.state.is_final
        self._print(f"{end_line(trial)}; {self._ended} of {counted(self._total, 'trial')} ended")
        if trial.error:
            self._console.print(trial.error.strip(), style="red", markup=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        # Not wrapped, so that an event is one line of output on any terminal.
        self._console.print(line, soft_wrap=True)


def start_line(trial: TrialRecord, *, promoted: bool) -> str:
    """Return the line of a trial that starts, continues after its pause, or starts again.

    The lines of this module are rich markup.
    """
    word = "continues" if promoted else "starts again" if trial.epochs else "starts"
    where = f" after epoch {trial.epochs}" if trial.epochs else ""
    return f"{_name(trial)} {word}{where}: {escape(pairs(trial.parameters))}"


def note_line(trial: TrialRecord, text: str) -> str:
    """Return the line of a note about a trial."""
    return f"{_name(trial)} note: {escape(text)}"


def end_line(trial: TrialRecord) -> str:
    """Return the line of a trial's state, with its best value if the trial has ended."""
    style = STATE_STYLE[trial.state]
    line = f"{_name(trial)} [{style}]{trial.state.value}[/{style}] after epoch {trial.epochs}"
    if trial.state is TrialState.PAUSED or not trial.best_epoch:
        return line
    return f"{line}, best {format_number(trial.best_value)} at epoch {trial.best_epoch}"


def _name(trial: TrialRecord) -> str:
    return trial_name(trial.number)
