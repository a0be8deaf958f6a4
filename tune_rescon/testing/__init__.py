"""For the tests of this project and of its users: learning curves without learning."""

from tune_rescon.testing.curves import SyntheticCurve
from tune_rescon.testing.simulation import simulate

__all__ = ["SyntheticCurve", "simulate"]
