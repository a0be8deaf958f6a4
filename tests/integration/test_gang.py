"""Trials of two processes: on one machine, on two, and with one of the processes killed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tune_rescon.config import TrialState
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = pytest.mark.ray

#: A real search, small: the paper's CIFAR-56 at a quarter of its width on half of digits.
SMALL = [
    *("fixed.width=0.25", "fidelity.max=4", "scheduler.reduction_factor=2", "sampler.type=random"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "dataset.limit=1000"),
]


@pytest.fixture(scope="module")
def results(
    ray_here: None, cache_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, StudyResult]:
    """The same search with trials of one process and of two; a trial of the first is compared with."""
    del ray_here
    storage = tmp_path_factory.mktemp("runs")
    options = RunOptions(name="s", storage=storage, data_root=storage, cache_root=cache_root)
    return {
        workers: run_search(
            load_space(
                "digits", [*SMALL, f"resources_per_trial.workers={workers}", f"budget.trials={workers}"]
            ),
            dataclasses.replace(options, name=f"of_{workers}"),
        )
        for workers in (1, 2)
    }


def test_trials_of_two_are_trials_like_others(results: dict[int, StudyResult]) -> None:
    pair = results[2]
    assert pair.state.value == "finished"
    assert all(trial.state in (TrialState.FINISHED, TrialState.STOPPED) for trial in pair.trials)
    assert pair.trials[0].epochs == 4
    assert pair.devices_per_trial == 2
    runs = mlflow.MlflowClient(pair.tracking_uri).search_runs(["1"])
    assert sum(run.info.run_name.startswith("trial_") for run in runs) == 3


def test_two_learn_what_one_learns(results: dict[int, StudyResult]) -> None:
    one, two = (results[workers].trials[0] for workers in (1, 2))
    assert one.parameters == two.parameters
    assert max(two.values) == pytest.approx(max(one.values), abs=0.15)
    assert max(two.values) > 0.5


#: What is killed, once, after the second epoch of a trial: the process that trains with the first one, or the
#: first one.
VICTIMS = ["ray::Member", "ray::ImplicitFunc"]

#: A search on two machines of one core each, with a trial for each victim.
#: Prints what became of the search and its trials, and whose processes were killed.
DRIVER = """
import json, sys
from pathlib import Path
import psutil
import ray
from ray.cluster_utils import Cluster
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, SearchListener, run_search
from tune_rescon.tuning.execution.cluster import prepare_environment

folder, victims = Path(sys.argv[1]), json.loads(sys.argv[2])
prepare_environment(own_ray=True)
small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
cluster.add_node(num_cpus=1, **small)
ray.init(address=cluster.address, log_to_driver=False)

def processes(name):
    ours = psutil.Process().children(recursive=True)
    return [one for one in ours if "".join(one.cmdline()[:1]).startswith(name)]

class Blow(SearchListener):
    struck = []
    def search_started(self, trials): pass
    def trial_started(self, trial): pass
    def trial_noted(self, trial, text): print(trial.number, text, file=sys.stderr)
    def trial_ended(self, trial): print(trial.number, trial.state, trial.error, file=sys.stderr)
    def epoch_done(self, trial, metrics, verdict):
        if trial.epochs == 2 and trial.number not in self.struck:
            one, = processes(victims[trial.number])
            self.struck.append(trial.number)
            one.kill()

space = load_space("digits", [*json.loads(sys.argv[3]), "resources_per_trial.workers=2"])
options = RunOptions(name="s", storage=folder / "runs", data_root=folder, cache_root=folder / "cache")
result = run_search(space, options, listeners=[Blow()])
print(json.dumps({
    "state": result.state.value,
    "trials": [[trial.state.value, trial.epochs, *trial.values] for trial in result.trials],
    "struck": Blow.struck,
}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def found(
    ask_driver: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found."""
    # Each trial lives to be killed.
    settings = [*SMALL, "scheduler={type: none}", "dataset.limit=400", f"budget.trials={len(VICTIMS)}"]
    folder = tmp_path_factory.mktemp("s")
    return ask_driver(DRIVER, str(folder), json.dumps(VICTIMS), json.dumps(settings))


@pytest.mark.parametrize("number", range(len(VICTIMS)), ids=VICTIMS)
def test_on_two_machines_a_trial_whose_process_is_killed_goes_on(number: int, found: dict[str, Any]) -> None:
    """The second machine's process has a folder of its own: it is sent the first one's checkpoint."""
    assert found["state"] == "finished"
    assert found["struck"] == list(range(len(VICTIMS)))
    state, epochs, *values = found["trials"][number]
    assert (state, epochs, len(values)) == ("finished", 4, 4)
