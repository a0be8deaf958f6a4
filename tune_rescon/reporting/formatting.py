"""Format numbers, times, parameters and messages; the colours of states and rank classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tune_rescon.config import TrialState, trial_name
from tune_rescon.errors import hide_passwords, shell_command

if TYPE_CHECKING:
    from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "MUTED",
    "RANK_STYLE",
    "STATE_COLOUR",
    "STATE_ORDER",
    "command_for",
    "device_hours_unit",
    "duration",
    "foreign_message",
    "format_device_hours",
    "format_hours",
    "format_number",
    "format_speed",
    "in_hand_message",
    "pairs",
    "roughly",
    "setting_text",
    "value_text",
]


def format_number(value: object) -> str:
    """Format a value with at most four significant digits; a missing value is a dash.

    Passwords in URLs are hidden: ``init_from`` may be one.

    >>> values = (0.123456, 0.000012345, 92, float("nan"), None)
    >>> tuple(format_number(value) for value in values)
    ('0.1235', '1.234e-05', '92', '-', '-')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else hide_passwords(str(value))


def setting_text(name: str, value: object) -> str:
    """Format the value of a parameter for a table or an axis.

    A ``network`` of null is a Residual Attention Network, shown as ``attention``.

    >>> setting_text("network", None), setting_text("depth", None), setting_text("depth", 56)
    ('attention', '-', '56')
    """
    return "attention" if name == "network" and value in (None, "None") else format_number(value)


def pairs(parameters: Mapping[str, object]) -> str:
    """Return ``name=value`` of each parameter, in order.

    >>> pairs({"network": None, "depth": 92, "learning_rate": 0.1})
    'network=attention depth=92 learning_rate=0.1'
    """
    return " ".join(f"{name}={setting_text(name, value)}" for name, value in parameters.items())


def value_text(trial: TrialRecord) -> str:
    """Return a trial's value, the epoch of the value, and the rule that chose this epoch."""
    value = f"{trial.metric} {format_number(trial.value)} at epoch {trial.value_epoch} of {trial.epochs}"
    return f"{value} (metric.at: {trial.at})"


def in_hand_message(result: StudyResult) -> str | None:
    """Return a line about an unfinished trial that is better than the winner; None without one.

    The line ends with the command that trains it to the end, unless the search still runs and may do so.
    """
    trial, winner = result.in_hand, result.best
    if trial is None or winner is None:
        return None
    is_running = result.state.value == "running"
    line = (
        f"Best in hand: {trial_name(trial.number)} has {trial.metric} {format_number(trial.value)} after"
        f" {trial.epochs} of {result.rungs[-1]} epochs; the winner{' so far' if is_running else ''},"
        f" {trial_name(winner.number)}, has"
        f" {format_number(winner.value)}."
    )
    if is_running:
        return line
    command = command_for(result, "train", "--from", result.name, "--trial", str(trial.number))
    return f"{line} To train it to the end: {command}"


def command_for(result: StudyResult, command: str, *words: str) -> str:
    """Return the line that runs ``command`` with ``words`` on the search, from any directory."""
    # Imported here, because a dry run needs no result.
    from tune_rescon.tuning import location_flags

    storage = result.url.rpartition("/")[0] if result.url else str(result.folder.parent)
    flags = location_flags(storage, result.study_url)
    return shell_command(["python", "-m", f"tune_rescon.{command}", *words], flags)


def duration(seconds: float) -> str:
    """Format a time by its two largest units of hours, minutes and seconds; from 100 hours, by hours alone.

    >>> duration(7.26), duration(59.97), duration(75), duration(7384), duration(6_684_720)
    ('7.3 s', '1 min 0 s', '1 min 15 s', '2 h 3 min', '1857 h')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    if minutes < 6000:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60:.0f} h"


def format_device_hours(hours: Mapping[str, float]) -> str:
    """Format the time for which trials held devices, by its units; the devices of a CPU are its cores.

    >>> format_device_hours({"GPU-hours": 12.3456, "core-hours": 0.02})
    '12.3 GPU-hours and 0.02 core-hours'
    """
    return " and ".join(f"{format_hours(spent)} {unit}" for unit, spent in hours.items())


def format_hours(hours: float) -> str:
    """Format hours with three significant digits; from 1,000 hours on, without decimals.

    >>> format_hours(0.11111), format_hours(999.4), format_hours(1386.2)
    ('0.111', '999', '1,386')
    """
    return f"{hours:.3g}" if hours < 999.5 else f"{hours:,.0f}"


def format_speed(images_per_second: float) -> str:
    """Format a speed with at most four significant digits; from 1,000 images/s on, without decimals.

    >>> format_speed(0.93), format_speed(67.5), format_speed(12345.6)
    ('0.93', '67.5', '12,346')
    """
    return f"{images_per_second:.4g}" if images_per_second < 1000 else f"{images_per_second:,.0f}"


def device_hours_unit(device: str) -> str:
    """Return the unit of :func:`format_device_hours`.

    >>> device_hours_unit("GPU"), device_hours_unit("CPU")
    ('GPU-hours', 'core-hours')
    """
    return f"{'core' if device == 'CPU' else device}-hours"


def roughly(seconds: float) -> str:
    """Format an estimated time, rounded because it is not exact.

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


def foreign_message(numbers: Sequence[int]) -> str:
    """Return a line about those trials of the study that the search did not create.

    >>> foreign_message((3, 7))
    'Foreign trials in the study, enqueued and not yet run or of another program: 3, 7'
    """
    names = ", ".join(map(str, numbers))
    return f"Foreign trials in the study, enqueued and not yet run or of another program: {names}"


#: Colour of the background of a plot's data, visible on white and on black.
MUTED: Final = "#8a94a0"

STATE_COLOUR: Final = {
    TrialState.RUNNING: "#56b4e9",
    TrialState.FINISHED: "#009e73",
    TrialState.STOPPED: "#e69f00",
    TrialState.DIVERGED: "#cc79a7",
    TrialState.OUT_OF_MEMORY: "#d55e00",
    TrialState.FAILED: "#d55e00",
    TrialState.INTERRUPTED: "#0072b2",
    TrialState.PAUSED: MUTED,
}

#: Drawing order of the states, the first at the bottom: the many stopped trials do not hide the few finished
#: ones.
STATE_ORDER: Final = (
    TrialState.STOPPED,
    TrialState.PAUSED,
    TrialState.DIVERGED,
    TrialState.OUT_OF_MEMORY,
    TrialState.FAILED,
    TrialState.INTERRUPTED,
    TrialState.RUNNING,
    TrialState.FINISHED,
)

#: Colour, opacity and line width of each class of trials by rank (:func:`.rank_classes`), the best first.
RANK_STYLE: Final = {
    "best tenth": ("#e69f00", 0.95, 1.8),
    "best quarter": ("#009e73", 0.7, 1.3),
    "better half": ("#56b4e9", 0.45, 1.0),
    "the rest": (MUTED, 0.25, 0.8),
}
