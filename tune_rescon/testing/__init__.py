"""Simulated searches whose best result is known, for the tests of this project and of its users.

::

    SyntheticCurve, Landscape   the reports of a trial, as a formula of its hyperparameters
    simulate, Simulation        a complete search under a simulated clock; workers and drivers die on request
    SimulatedSearch             a space's own coordinator, as run_search creates it, for that simulation
    SearchConformance           the properties that every search must have; a test class derives from it
    TunePolicy                  Ray Tune's searchers and schedulers in that simulation, without a Ray runtime
    learn_slowly, ...           functions that Ray can run instead of a trial that trains

Names are loaded on first use, because a worker process that only pretends to train needs neither the
simulator nor SciPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.testing.conformance import RecordedSearch, SearchConformance
    from tune_rescon.testing.landscapes import LANDSCAPES, Landscape, SyntheticCurve
    from tune_rescon.testing.policy import Assignment, SearchPolicy
    from tune_rescon.testing.simulation import SimulatedSearch, Simulation, WorkerDeaths, simulate
    from tune_rescon.testing.trainables import (
        EpochRun,
        Incumbent,
        Trace,
        die_variously,
        end_together,
        fail_second,
        learn_nothing,
        learn_slowly,
    )
    from tune_rescon.testing.tune_policy import TunePolicy, TuneTrial
else:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
