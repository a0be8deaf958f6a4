"""A trial's process is told to go amid an epoch: the trial goes on in another one, with the next batch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

#: One trial of the paper's CIFAR-56 at an eighth of its width on digits.
SPACE = [
    *("fixed.width=0.125", "fixed.batch_size=16", "fidelity.max=3", "scheduler.type=none"),
    *("fixed.drop_path=0.2", "fixed.ema_decay=0.9", "fixed.mixup=0.2", "dataset.limit=800"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "budget.trials=1"),
]

#: The same search twice on three machines of one core each. The second time its process gets a SIGTERM amid
#: the first epoch; the machine it then is on is drained amid the second; the next one hears amid the third,
#: from EC2, that it will be taken away. Each step writes a line: which process took it, on which node. Prints
#: of both searches the trial and its steps, and the nodes that can be used at the end.
DRIVER = """
import json, os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, run_search
from tune_rescon.tuning.execution.cluster import prepare_environment

folder, space = Path(sys.argv[1]), load_space("digits", json.loads(sys.argv[2]))
prepare_environment(own_ray=True)
small = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
for _ in range(3):
    cluster.add_node(num_cpus=1, **small)
ray.init(address=cluster.address, log_to_driver=False)

def steps_of(name):
    ledger = folder / f"{name}.steps"
    return [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []

def trainable(name, pace):
    ledger = folder / f"{name}.steps"

    def train(config):
        import functools
        import ray
        from tune_rescon.training.module import TrialModule
        from tune_rescon.tuning.execution.spot import SpotNotice
        from tune_rescon.tuning.execution.trial import run_trial

        whole, node = TrialModule.training_step, ray.get_runtime_context().get_node_id()

        @functools.wraps(whole)
        def training_step(self, batch):
            with ledger.open("a") as file:
                file.write(f"{os.getpid()} {node}\\n")
            time.sleep(pace)
            return whole(self, batch)

        TrialModule.training_step = training_step
        SpotNotice.came = lambda self: (folder / node).exists()
        try:
            run_trial(config)
        finally:
            TrialModule.training_step = whole

    return train

def search(name, pace):
    options = RunOptions(name=name, storage=folder / "runs", data_root=folder, cache_root=folder / "cache")
    (trial,) = run_search(space, options, trainable=trainable(name, pace)).trials
    return {
        "state": trial.state.value,
        "error": trial.error,
        "values": list(trial.values),
        "notes": list(trial.notes),
        "steps": steps_of(name),
    }

control = ray._private.worker.global_worker.gcs_client

def usable():
    # A raylet that is drained ends once it is idle.
    drained = control.get_draining_nodes()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in drained]

def strike(batches):
    def taken(epochs):
        while len(steps_of("struck")) < epochs * batches:
            time.sleep(0.05)
        return steps_of("struck")[-1]

    os.kill(int(taken(0.5)[0]), signal.SIGTERM)
    control.drain_node(taken(1.2)[1], 2, "a spot notice", int(1000 * (time.time() + 600)))
    (folder / taken(2.2)[1]).touch()

whole = search("whole", 0.0)
threading.Thread(target=strike, args=(len(whole["steps"]) / 3,), daemon=True).start()
struck = search("struck", 0.15)
print(json.dumps({"whole": whole, "struck": struck, "usable": usable()}))
ray.shutdown()
cluster.shutdown()
"""


def test_no_batch_is_trained_twice_and_no_result_is_another(
    ask_driver: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = ask_driver(DRIVER, str(tmp_path), json.dumps(SPACE))
    whole, struck = found["whole"], found["struck"]
    assert (struck["state"], struck["error"]) == ("finished", None)
    assert struck["values"] == whole["values"]
    assert len(struck["steps"]) == len(whole["steps"])

    processes = list(dict.fromkeys(process for process, _ in struck["steps"]))
    nodes = [dict(map(tuple, struck["steps"]))[process] for process in processes]
    assert len(processes) == 4
    assert len(set(nodes[1:])) == 3, "nothing goes to a drained machine"
    assert not {nodes[1], nodes[2]} & set(found["usable"]), "who had the notice drained its machine"
    assert nodes[3] in found["usable"]

    said_of = [re.findall(r"after (\d+) batches of epoch (\d)", note) for note in struck["notes"]]
    places = [(int(done), int(epoch)) for ((done, epoch),) in said_of]
    batches = len(whole["steps"]) // 3
    left = [(epoch - 1) * batches + done for done, epoch in places]
    assert [taken // batches for taken in left] == [0, 1, 2]
    taken = [sum(process == one for one, _ in struck["steps"]) for process in processes]
    assert list(itertools.accumulate(taken)) == [*left, 3 * batches]
