"""For the tests of this project and of its users: searches whose answer is known, run without training.

::

    SyntheticCurve, Landscape   what a trial reports, as a formula of its hyperparameters
    simulate, Simulation        a whole search under a simulated clock, workers and drivers dying on request
    learn_slowly, ...           what Ray can run instead of a trial that learns
"""

from tune_rescon.testing.curves import SyntheticCurve
from tune_rescon.testing.landscapes import LANDSCAPES, Landscape
from tune_rescon.testing.policy import Assignment, SearchPolicy
from tune_rescon.testing.simulation import Simulation, WorkerDeaths, simulate
from tune_rescon.testing.trace import EpochRun, Incumbent, Trace
from tune_rescon.testing.trainables import die_once, fail_second, learn_nothing, learn_slowly

__all__ = [
    "LANDSCAPES",
    "Assignment",
    "EpochRun",
    "Incumbent",
    "Landscape",
    "SearchPolicy",
    "Simulation",
    "SyntheticCurve",
    "Trace",
    "WorkerDeaths",
    "die_once",
    "fail_second",
    "learn_nothing",
    "learn_slowly",
    "simulate",
]
