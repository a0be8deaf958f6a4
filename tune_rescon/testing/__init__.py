"""For the tests of this project and of its users: curves without learning, trials without training."""

from tune_rescon.testing.curves import SyntheticCurve
from tune_rescon.testing.simulation import simulate
from tune_rescon.testing.trainables import die_once, fail_second, learn_nothing, learn_slowly

__all__ = [
    "SyntheticCurve",
    "die_once",
    "fail_second",
    "learn_nothing",
    "learn_slowly",
    "simulate",
]
