"""Which checkpoints a search keeps: those of the best trials, one each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tune_rescon.tuning.record.summary import TrialSummary

__all__ = ["KEEP_BEST", "keepers"]

#: Trials whose best checkpoint outlives the search: enough for ``train --top`` without filling a disk.
KEEP_BEST: Final = 5


def keepers(ended: Iterable[TrialSummary], *, keep: int | None = KEEP_BEST) -> frozenset[int]:
    """Numbers of the ``keep`` best trials that ended with a finite value; None: of all of them."""
    judged = [trial for trial in ended if trial.best_epoch]
    return frozenset(trial.number for trial in sorted(judged, key=TrialSummary.rank_key)[:keep])
