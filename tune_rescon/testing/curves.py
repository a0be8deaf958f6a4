"""Learning curves as formulas: what a trial would report, known before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

__all__ = ["SyntheticCurve"]

#: Epochs by which noise has fallen to twice its late size.
EARLY_NOISE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class SyntheticCurve:
    """A validation accuracy by epoch, and what an epoch takes.

    It goes from ``start`` towards ``limit`` by a power law, the shape that validation curves are usually
    fitted with (Domhan et al., "Speeding up automatic hyperparameter optimization of deep neural networks by
    extrapolation of learning curves", IJCAI 2015): the distance left after ``epoch`` epochs is
    ``(1 + epoch / tau) ** -power`` of the first.
    """

    limit: float
    start: float = 0.1
    tau: float = 3.0
    """Epochs; small is a fast start."""
    power: float = 1.5
    peak_epoch: int = 0
    """The last epoch before over-fitting sets in; 0: it never does."""
    fall: float = 0.0
    """What over-fitting costs in the long run."""
    noise: float = 0.0
    """Standard deviation of reported values around the curve in the long run; early ones are noisier, by
    :data:`EARLY_NOISE` epochs over the epoch."""
    noise_key: tuple[int, ...] = (0,)
    """The noise of an epoch depends on this and the epoch, not on what was asked before."""
    diverges_at: int = 0
    """The first epoch whose value is nan; 0: none."""
    crashes_at: int = 0
    """The epoch amid which the trial's code raises; 0: none."""
    epoch_seconds: float = 1.0

    def at(self, epoch: int) -> float:
        """The accuracy reported after ``epoch`` epochs, in 0..1; nan once it has diverged.

        >>> round(SyntheticCurve(limit=0.9, start=0.0, tau=1.0, power=1.0).at(2), 3)
        0.6
        >>> SyntheticCurve(limit=0.9, diverges_at=2).at(2)
        nan
        """
        if self.diverges_at and epoch >= self.diverges_at:
            return math.nan
        if not self.noise:
            return self.expected(epoch)
        scale = self.noise * (1 + EARLY_NOISE / epoch)
        drawn = np.random.default_rng((*self.noise_key, epoch)).normal(scale=scale)
        return min(max(self.expected(epoch) + float(drawn), 0.0), 1.0)

    def expected(self, epoch: int) -> float:
        """The accuracy without noise, as if it never diverged.

        >>> SyntheticCurve(limit=0.9, tau=3.0).expected(0)
        0.1
        >>> steady = SyntheticCurve(limit=0.9)
        >>> peaked = SyntheticCurve(limit=0.9, peak_epoch=10, fall=0.2)
        >>> peaked.expected(10) == steady.expected(10), round(steady.expected(40) - peaked.expected(40), 3)
        (True, 0.15)
        """
        left = math.pow(1 + epoch / self.tau, -self.power)
        late = self.peak_epoch and epoch > self.peak_epoch
        lost = self.fall * (1 - self.peak_epoch / epoch) if late else 0.0
        return self.start + (self.limit - self.start) * (1 - left) - lost
