"""The simulator at the size it is for."""

from __future__ import annotations

import pytest

from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, simulate


@pytest.mark.timeout(30)  # about one second where nothing else runs
def test_500_trials_on_64_workers_take_seconds() -> None:
    """Random draws: what is measured is the simulator, the rule and the record, not Optuna's model."""
    space = load_space(
        "att92", ["initial=[]", "budget.trials=500", "sampler.type=random", "scheduler={type: asha}"]
    )
    search, landscape = SimulatedSearch(space), LANDSCAPES["diverging"]
    trace = simulate(search.policy(), lambda t: landscape.curve(t.number, t.parameters), workers=64)
    assert [trial.number for trial in search.trials()] == list(range(500))
    assert len({run.worker for run in trace.runs}) == 64
    assert trace.epochs_spent < 0.1 * 500 * space.fidelity.max
    assert 0 < trace.utilisation < 1
