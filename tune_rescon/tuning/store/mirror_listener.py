"""What happens in a search, told to the mirror that keeps its URL up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from typing_extensions import override

from tune_rescon.storage import Mirror
from tune_rescon.tuning.listener import SearchListener
from tune_rescon.tuning.record.summary import TrialSummary
from tune_rescon.tuning.rules.stopping import Verdict

__all__ = ["MirrorListener"]


class MirrorListener(SearchListener):
    """Waits a little where a trial begins or ends, and never at an epoch."""

    def __init__(self, mirror: Mirror) -> None:
        """Tell ``mirror``."""
        self._mirror = mirror

    @override
    def search_started(self, trials: Sequence[TrialSummary]) -> None:
        """Nothing: that much was sent when the storage was first written."""

    @override
    def trial_started(self, trial: TrialSummary) -> None:
        """Before a worker has the trial it is in the study at the URL, if that is quick."""
        self._mirror.flush()

    @override
    def epoch_done(self, trial: TrialSummary, metrics: Mapping[str, float], verdict: Verdict) -> None:
        """Its checkpoint holds the epoch already."""
        self._mirror.changed()

    @override
    def trial_noted(self, trial: TrialSummary, text: str) -> None:
        """It can wait for the next copy."""
        self._mirror.changed()

    @override
    def trial_ended(self, trial: TrialSummary) -> None:
        """What became of it, and with that which checkpoints can go."""
        self._mirror.flush()
