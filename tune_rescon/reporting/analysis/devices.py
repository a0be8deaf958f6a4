"""What a search cost on each kind of device, by the epochs that ran there."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final

from tune_rescon.tuning import StudyResult, TrialSummary

__all__ = ["UNKNOWN", "device_hours", "devices_of"]

#: The kind of an epoch whose record does not name one: an earlier version wrote it.
UNKNOWN: Final = "unknown"


def device_hours(result: StudyResult) -> dict[str, float]:
    """Device-hours by kind, the most first; each epoch counts where it ran, also of a trial that moved."""
    hours: defaultdict[str, float] = defaultdict(float)
    for trial in result.trials:
        for epoch, seconds in enumerate(trial.history.get("epoch_seconds", ())):
            if math.isfinite(seconds):
                kind = trial.devices[epoch] if epoch < len(trial.devices) else None
                hours[kind or UNKNOWN] += seconds / 3600 * result.devices_per_trial
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))


def devices_of(trial: TrialSummary) -> str:
    """The kinds a trial ran on, in order and each once; "" if none is known."""
    return ", ".join(dict.fromkeys(kind for kind in trial.devices if kind))
