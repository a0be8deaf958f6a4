"""How long finals take, told from the times of the search they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, explain

__all__ = ["epochs_within", "finals_seconds", "read_duration"]

_DURATION = re.compile(r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?")


def read_duration(text: str) -> float:
    """Seconds.

    >>> read_duration("2h"), read_duration("1h30m"), read_duration("90s")
    (7200.0, 5400.0, 90.0)

    Raises:
        ConfigError: it is none.
    """
    found = _DURATION.fullmatch(text)
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds > 0:
        rule = "must be a time, such as 2h, 1h30m or 90s"
        raise ConfigError(explain(rule, got=repr(text), where="--budget"))
    return seconds


def finals_seconds(epoch_seconds: float, *, epochs: int, trainings: int, slots: int) -> float:
    """Wall time of ``trainings`` of ``epochs`` epochs, ``slots`` at once.

    >>> finals_seconds(10, epochs=3, trainings=5, slots=2)
    90
    """
    return math.ceil(trainings / slots) * epochs * epoch_seconds


def epochs_within(
    seconds: float, epoch_seconds: float, configs: Sequence[TrialConfig], *, trainings: int, slots: int
) -> int:
    """The most epochs for which :func:`finals_seconds` is at most ``seconds``.

    Raises:
        ConfigError: they do not reach past the warm-up.
    """
    epochs = int(seconds / finals_seconds(epoch_seconds, epochs=1, trainings=trainings, slots=slots))
    least = max(1, math.ceil(max(config.warmup_epochs for config in configs)))
    if epochs < least:
        needed = finals_seconds(epoch_seconds, epochs=least, trainings=trainings, slots=slots)
        rule = f"must be enough for {least} epochs of {trainings} trainings, about {needed:.0f} s"
        hint = "Give more, or smaller --top or --seeds."
        raise ConfigError(explain(rule, got=f"{seconds:.0f} s", where="--budget", hint=hint))
    return epochs
