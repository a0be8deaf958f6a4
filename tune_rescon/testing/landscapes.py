"""Functions from a trial's hyperparameters to its learning curve: searches whose best result is known.

The parameters are those of the shipped spaces (``search_spaces/att92.yaml``); a parameter that a space does
not have gets its default. The best learning rate is lower for deeper networks, so that no parameter can be
chosen independently of the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from tune_rescon.spaces import CategoricalParameter, Parameter, Space, is_active

__all__ = ["LANDSCAPES", "Landscape", "SyntheticCurve"]


#: The epoch at which the noise has fallen to twice its final size.
EARLY_NOISE: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class SyntheticCurve:
    """A validation accuracy by epoch, and the duration of an epoch.

    The accuracy moves from ``start`` towards ``limit`` by a power law, the shape that is usually fitted to
    validation curves (Domhan et al., "Speeding up automatic hyperparameter optimization of deep neural
    networks by extrapolation of learning curves", IJCAI 2015): after ``epoch`` epochs, the remaining distance
    is ``(1 + epoch / tau) ** -power`` of the initial one.
    """

    limit: float
    start: float = 0.1
    tau: float = 3.0
    """Time constant, in epochs; a small value is a fast start."""
    power: float = 1.5
    peak_epoch: int = 0
    """The last epoch before over-fitting begins; 0: it never begins."""
    fall: float = 0.0
    """The accuracy that over-fitting costs in the long run."""
    noise: float = 0.0
    """Standard deviation of the reported values around the curve in the long run. At an early epoch the
    standard deviation is larger by the factor ``1 + EARLY_NOISE / epoch``."""
    noise_key: tuple[int, ...] = (0,)
    """The noise of an epoch depends only on this key and on the epoch, not on earlier calls."""
    diverges_at: int = 0
    """The first epoch whose value is nan; 0: the curve never diverges."""
    crashes_at: int = 0
    """The epoch during which the trial's code raises; 0: it never raises."""
    epoch_seconds: float = 1.0

    def at(self, epoch: int) -> float:
        """Return the accuracy reported after ``epoch`` epochs, in 0..1; nan once the trial has diverged.

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
        """Return the accuracy without noise, as if the trial never diverged.

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


_DEFAULTS: Final[Mapping[str, float]] = {
    "depth": 92,
    "image_size": 32,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "drop_path": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """Learning curves over a search space; the fields set what makes the search difficult."""

    crossing: float = 0.0
    """How much faster small images, shallow networks and low learning rates start, although their final
    accuracy is low. 0: the curves keep their order."""
    overfitting: float = 0.0
    """The accuracy that the least regularised trials lose after their peak; they also start fastest."""
    cliff: float = math.inf
    """Trials begin to diverge this many decades of learning rate above the best one."""
    noise: float = 0.003
    """The noise of the curves: see :class:`.SyntheticCurve`."""
    seed: int = 0

    def curve(self, number: int, parameters: Mapping[str, Any]) -> SyntheticCurve:
        """Return the learning curve of trial ``number`` with these parameters."""
        of = {**_DEFAULTS, **parameters}
        deep = math.log2(of["depth"] / 56)
        large = math.log2(of["image_size"] / 32)
        off_rate = math.log10(of["learning_rate"]) - _best_rate(deep)
        off_decay = math.log10(of["weight_decay"]) + 3.4
        off_drop = of["drop_path"] - 0.08 * deep
        limit = 0.96 - 0.012 * (1.2 - deep) - 0.01 * abs(1.6 - large)
        limit -= 0.04 * off_rate**2 + 0.012 * off_decay**2 + off_drop**2
        loose = _looseness(off_decay, of["drop_path"]) if self.overfitting else 0.0
        slow = self.crossing * (0.3 * off_rate + 0.4 * large + 0.5 * deep)
        return SyntheticCurve(
            limit=max(limit, 0.12),
            tau=1.5 * math.exp(slow - 0.3 * loose),
            peak_epoch=round(4 + 60 * (1 - loose) ** 2) if self.overfitting else 0,
            fall=self.overfitting * loose,
            noise=self.noise,
            noise_key=(self.seed, number),
            diverges_at=_diverges_at(off_rate - self.cliff),
            epoch_seconds=_epoch_seconds(of["depth"], of["image_size"]),
        )

    def value(self, parameters: Mapping[str, Any], epochs: int) -> float:
        """Return the accuracy after ``epochs`` epochs without noise; 0 if these parameters diverge."""
        curve = self.curve(0, parameters)
        diverged = 0 < curve.diverges_at <= epochs
        return 0.0 if diverged else curve.expected(epochs)

    def best_known(self, space: Space) -> float:
        """Return the largest :meth:`value` in ``space`` at its last epoch, to about 1e-6."""
        # Imported here, because a worker process that pretends to train needs only the curves.
        from scipy.optimize import differential_evolution

        parameters = space.parameters
        found = differential_evolution(
            lambda point: -self.value(_point(parameters, point), space.fidelity.max),
            [(0.0, 1.0)] * len(parameters),
            rng=np.random.default_rng(0),
            tol=1e-8,
        )
        return -float(found.fun)


LANDSCAPES: Final[Mapping[str, Landscape]] = MappingProxyType(
    {
        "monotone": Landscape(),
        "crossing": Landscape(crossing=0.4),
        "overfitting": Landscape(overfitting=0.15),
        "diverging": Landscape(cliff=0.15),
    }
)
"""The landscapes of the search-quality benchmark, from easy to difficult."""


def _best_rate(deep: float) -> float:
    """Return log10 of the best learning rate; the rate is 0.1 at depth 56 and 0.046 at depth 128."""
    return -1.0 - 0.28 * deep


def _looseness(off_decay: float, drop_path: float) -> float:
    """Return 0 if the regularisation prevents all over-fitting, and 1 if hardly any regularisation exists."""
    return min(max(-0.5 * off_decay - drop_path, 0.0), 1.0)


def _diverges_at(decades: float) -> int:
    """Return the first epoch that is nan: the further beyond the cliff, the earlier; 0 below the cliff."""
    return max(1, round(8 - 20 * decades)) if decades > 0 else 0


def _epoch_seconds(depth: float, image_size: float) -> float:
    """Return a duration proportional to the multiply-adds: to the depth and the square of the image side."""
    return 10.0 * depth / 56 * (image_size / 32) ** 2


def _point(parameters: Mapping[str, Parameter], point: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return the active parameters at a point of the unit cube, which has one coordinate per parameter."""
    values: dict[str, Any] = {}
    for (name, parameter), share in zip(parameters.items(), point, strict=True):
        if is_active(parameter, values):
            values[name] = _value(parameter, float(share))
    return values


def _value(parameter: Parameter, share: float) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices[min(int(share * len(parameter.choices)), len(parameter.choices) - 1)]
    if parameter.log:
        return parameter.low * (parameter.high / parameter.low) ** share
    return parameter.low + (parameter.high - parameter.low) * share
