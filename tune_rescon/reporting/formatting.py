"""Figures and parameters as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tune_rescon.config import TrialState

if TYPE_CHECKING:
    from tune_rescon.tuning import TrialRecord

__all__ = [
    "FATE_COLOUR",
    "FATE_ORDER",
    "duration",
    "foreign_words",
    "format_number",
    "pairs",
    "roughly",
    "value_words",
]


def format_number(value: object) -> str:
    """A value in at most four significant digits; a dash for what is not there.

    >>> values = (0.123456, 0.000012345, 92, float("nan"), None)
    >>> tuple(format_number(value) for value in values)
    ('0.1235', '1.234e-05', '92', '-', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pairs(parameters: Mapping[str, object]) -> str:
    """``name=value`` of each, in order.

    >>> pairs({"depth": 92, "learning_rate": 0.1})
    'depth=92 learning_rate=0.1'
    """
    return " ".join(f"{name}={format_number(value)}" for name, value in parameters.items())


def value_words(trial: TrialRecord) -> str:
    """A trial's value, the epoch that it is of, and why that one: the network of that epoch is kept."""
    shown = f"{trial.metric} {format_number(trial.value)} at epoch {trial.value_epoch} of {trial.epochs}"
    return f"{shown} (metric.at: {trial.at})"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the largest two; of hundreds of hours, only those.

    >>> duration(7.26), duration(75), duration(7384), duration(6_684_720)
    ('7.3 s', '1 min 15 s', '2 h 3 min', '1857 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    if minutes < 6000:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60:.0f} h"


def roughly(seconds: float) -> str:
    """A time that is only estimated, without the figures nobody can rely on.

    >>> roughly(29), roughly(190), roughly(7900), roughly(300_000)
    ('under a minute', 'about 3 min', 'about 2 h 10 min', 'about 3 days')
    """
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    return f"about {hours} h {rest} min" if hours < 48 else f"about {round(hours / 24)} days"


def foreign_words(numbers: Sequence[int]) -> str:
    """A line about the trials in a study that are not the search's.

    >>> foreign_words((3, 7))
    'Foreign trials in the study, which another program created and this search has not run: 3, 7'
    """
    names = ", ".join(map(str, numbers))
    return f"Foreign trials in the study, which another program created and this search has not run: {names}"


FATE_COLOUR: Final = {
    TrialState.RUNNING: "#56b4e9",
    TrialState.FINISHED: "#009e73",
    TrialState.STOPPED: "#e69f00",
    TrialState.DIVERGED: "#cc79a7",
    TrialState.OUT_OF_MEMORY: "#d55e00",
    TrialState.FAILED: "#d55e00",
    TrialState.INTERRUPTED: "#0072b2",
    TrialState.PAUSED: "#8a94a0",
}

#: What is drawn first lies below: the many that were stopped, below the few that finished.
FATE_ORDER: Final = (
    TrialState.STOPPED,
    TrialState.PAUSED,
    TrialState.DIVERGED,
    TrialState.OUT_OF_MEMORY,
    TrialState.FAILED,
    TrialState.INTERRUPTED,
    TrialState.RUNNING,
    TrialState.FINISHED,
)
