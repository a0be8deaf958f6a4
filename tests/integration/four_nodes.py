"""The driver of test_four_nodes.py: a script with one JSON argument that prints one line of JSON."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import ray
from ray.cluster_utils import Cluster
from typing_extensions import override

from tune_rescon.command import progress_shown
from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import TuneResconError
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, SearchCallback, TrialRecord, Verdict, run_search
from tune_rescon.tuning.ray.session import prepare_environment
from tune_rescon.tuning.ray.staging import measured_on_gpu, stage_data
from tune_rescon.tuning.resources import largest_trial


def options(name: str, folder: Path) -> RunOptions:
    return RunOptions(name=name, storage=folder / "runs", data_root=folder, cache_root=folder / "cache")


def run_staging(folder: Path) -> dict[str, Any]:
    """Stage existing, changed and missing images, also on machines that are too small for a trial.

    Also measure a trial on a GPU that Ray lists and torch cannot use.
    """

    def stage(path: str, need: dict[str, float], digests: Mapping[str, str] | None = None) -> list[str]:
        lines: list[str] = []
        dataset = DatasetConfig(name="folder", path=str(folder / path), val_fraction=0.5)
        try:
            with progress_shown(lines.append):
                stage_data(
                    [dataset],
                    digests=digests or {},
                    data_root=folder / "data",
                    cache_root=folder / "images-cache",
                    need=need,
                )
        except TuneResconError as error:
            lines.append(str(error))
        return lines

    def measure() -> str | None:
        space = load_space("digits", ["resources_per_trial.gpu=auto"])
        try:
            datasets = {"digits": describe(space.dataset, data_root=folder)}
            measured_on_gpu(*largest_trial(space, datasets), cache_root=folder / "cache")
        except TuneResconError as error:
            return str(error)
        return None

    return {
        "images": stage("images", {"CPU": 1.0, "GPU": 0.0}),
        "cached": [path.name for path in (folder / "images-cache").iterdir()],
        "others": stage("images", {"CPU": 1.0}, {"folder": "0123"}),
        "nowhere": stage("nowhere", {"CPU": 1.0}),
        "too small": stage("nowhere", {"CPU": 8.0}),
        "measured": measure(),
    }


class KillProcess(SearchCallback):
    """Kills one process of each trial after its second epoch."""

    def __init__(self, victims: Sequence[str]) -> None:
        self._victims = victims
        self.killed: list[int] = []

    @override
    def on_trial_note(self, trial: TrialRecord, text: str) -> None:
        print(trial.number, text, file=sys.stderr)

    @override
    def on_trial_end(self, trial: TrialRecord) -> None:
        print(trial.number, trial.state, trial.error, file=sys.stderr)

    @override
    def on_epoch(self, trial: TrialRecord, metrics: Mapping[str, float], verdict: Verdict) -> None:
        del metrics, verdict
        if trial.epochs == 2 and trial.number not in self.killed:
            name = self._victims[trial.number]
            children = psutil.Process().children(recursive=True)
            (process,) = [process for process in children if "".join(process.cmdline()[:1]).startswith(name)]
            self.killed.append(trial.number)
            process.kill()


def run_pairs(folder: Path, victims: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Run a search of two-process trials, each of which loses one process."""
    killer = KillProcess(victims)
    result = run_search(load_space("digits", overrides), options("pairs", folder), callbacks=[killer])
    return {
        "state": result.state.value,
        "trials": [[trial.state.value, trial.epochs, *trial.values] for trial in result.trials],
        "killed": killer.killed,
    }


def read_steps(ledger: Path) -> list[list[str]]:
    """Return the process and the node of each training step so far."""
    return [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []


def trainable(folder: Path, ledger: Path, pace: float) -> Callable[[dict[str, Any]], None]:
    """Make a trainable that logs each step of ``pace`` seconds, and reads spot notices from files."""

    def train(config: dict[str, Any]) -> None:
        import functools
        import os
        import time

        import ray

        from tune_rescon.training.module import TrialModule
        from tune_rescon.tuning.ray.preemption import CLOUDS, Cloud, SpotNotice
        from tune_rescon.tuning.ray.worker import run_trial

        original_step, node = TrialModule.training_step, ray.get_runtime_context().get_node_id()

        @functools.wraps(original_step)
        def training_step(self: Any, batch: Any) -> Any:
            with ledger.open("a") as file:
                file.write(f"{os.getpid()} {node}\n")
            time.sleep(pace)
            return original_step(self, batch)

        def announced(_: object) -> Cloud | None:
            return CLOUDS[0] if (folder / node).exists() else None

        # This patch stays: the process checks for notices after the trial, too, and there is no cloud.
        mock.patch.object(SpotNotice, "announced", announced).start()
        with mock.patch.object(TrialModule, "training_step", training_step):
            run_trial(config)

    return train


def run_spot(folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the same search twice. The second time the trial is preempted in each of three epochs.

    Its process first gets a SIGTERM, then its node is drained, and then it gets a spot notice from EC2.
    """
    control = ray._private.worker.global_worker.gcs_client
    space = load_space("digits", overrides)

    def search(name: str, pace: float) -> dict[str, Any]:
        ledger = folder / f"{name}.steps"
        train = trainable(folder, ledger, pace)
        (trial,) = run_search(space, options(name, folder), trainable=train).trials
        return {
            "state": trial.state.value,
            "error": trial.error,
            "values": list(trial.values),
            "notes": list(trial.notes),
            "steps": read_steps(ledger),
        }

    def wait_for_steps(steps: float) -> list[str]:
        ledger = folder / "preempted.steps"
        while len(read_steps(ledger)) < steps:
            time.sleep(0.05)
        return read_steps(ledger)[-1]

    def preempt(batches: float) -> None:
        os.kill(int(wait_for_steps(0.5 * batches)[0]), signal.SIGTERM)
        deadline = int(1000 * (time.time() + 600))
        control.drain_node(wait_for_steps(1.2 * batches)[1], 2, "a spot notice", deadline)
        (folder / wait_for_steps(2.2 * batches)[1]).touch()

    uninterrupted = search("uninterrupted", 0.0)
    preempt_thread = functools.partial(preempt, len(uninterrupted["steps"]) / 3)
    threading.Thread(target=preempt_thread, daemon=True).start()
    preempted = search("preempted", 0.15)
    # A drained raylet ends once it is idle.
    drained = control.get_draining_nodes()
    usable = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in drained]
    return {"uninterrupted": uninterrupted, "preempted": preempted, "usable": usable}


def main() -> None:
    """Start the cluster, run every section on it, and print the results."""
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(arguments["folder"])
    prepare_environment(own_ray=True)
    small: dict[str, Any] = {"object_store_memory": 80 << 20}
    head = {"num_cpus": 0, "include_dashboard": False, **small}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for gpus in (1, 0, 0):
        cluster.add_node(num_cpus=1, num_gpus=gpus, **small)
    ray.init(address=cluster.address, log_to_driver=False)
    # Preemption comes last, because it drains two of the nodes.
    results = {
        "staging": run_staging(folder),
        "pairs": run_pairs(folder, arguments["victims"], arguments["pairs"]),
        "spot": run_spot(folder, arguments["alone"]),
    }
    print(json.dumps(results))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
