"""Learning curves as formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SyntheticCurve"]


@dataclass(frozen=True, kw_only=True)
class SyntheticCurve:
    """A validation accuracy that rises towards ``limit`` with time constant ``tau`` (epochs).

    From ``diverges_at`` on it is nan; 0 means never.
    """

    limit: float
    tau: float = 3.0
    diverges_at: int = 0

    def at(self, epoch: int) -> float:
        """The accuracy after ``epoch`` epochs.

        >>> round(SyntheticCurve(limit=0.9, tau=1.0).at(1), 4)
        0.5689
        >>> SyntheticCurve(limit=0.9, diverges_at=2).at(2)
        nan
        """
        if self.diverges_at and epoch >= self.diverges_at:
            return math.nan
        return self.limit * (1 - math.exp(-epoch / self.tau))
