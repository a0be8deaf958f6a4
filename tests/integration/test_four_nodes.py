"""A local Ray cluster of four nodes: staging of images, trials of two processes, and preemption.

One driver in a subprocess runs everything on one cluster, because a process can connect to one cluster only
and a cluster takes long to start. The head runs no trials; the other three nodes have one core each.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.nightly]

#: The process that is killed after the second epoch of each two-process trial: the second rank, or the first.
VICTIMS = ["ray::RankActor", "ray::ImplicitFunc"]

#: A search of two-process trials, one for each victim.
PAIRS = [
    *("fixed.width=0.25", "fidelity.max=4", "scheduler={type: none}", "sampler.type=random"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "dataset.limit=400"),
    *(f"budget.trials={len(VICTIMS)}", "resources_per_trial.workers=2"),
]

#: One trial of the paper's CIFAR-56 at an eighth of its width on digits.
SINGLE_PROCESS = [
    *("fixed.width=0.125", "fixed.batch_size=16", "fidelity.max=3", "scheduler.type=none"),
    *("fixed.drop_path=0.2", "fixed.ema_decay=0.9", "fixed.mixup=0.2", "dataset.limit=800"),
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    *("initial=[{learning_rate: 0.1}]", "budget.concurrent=1", "budget.trials=1"),
]


@pytest.fixture(scope="module")
def results(
    run_driver: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The results of tests/integration/four_nodes.py, by section."""
    folder = tmp_path_factory.mktemp("four")
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            shade = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(shade).save(folder / "images" / name / f"{number}.png")
    script = Path(__file__).with_name("four_nodes.py").read_text()
    arguments = {"folder": str(folder), "victims": VICTIMS, "pairs": PAIRS, "alone": SINGLE_PROCESS}
    return run_driver(script, json.dumps(arguments))


def test_other_machines_prepare_the_data_before_trials_start(results: dict[str, Any]) -> None:
    assert results["staging"]["images"] == ["Preparing the data on 3 other machines"]
    assert results["staging"]["cached"]


def test_a_machine_without_the_images_is_named(results: dict[str, Any]) -> None:
    error = results["staging"]["nowhere"][1]
    assert error.startswith("on ")
    assert "nowhere" in error


def test_a_machine_with_other_images_is_named(results: dict[str, Any]) -> None:
    error = results["staging"]["others"][1]
    assert error.startswith("on ")
    assert "other images in folder on " in error


def test_machines_too_small_for_a_trial_are_not_staged(results: dict[str, Any]) -> None:
    assert results["staging"]["too small"] == []


def test_a_gpu_that_torch_cannot_use_is_reported(results: dict[str, Any]) -> None:
    assert results["staging"]["measured"].startswith('device "cuda" needs a CUDA GPU that torch can use')


@pytest.mark.parametrize("number", range(len(VICTIMS)), ids=VICTIMS)
def test_a_two_machine_trial_resumes_after_a_process_is_killed(number: int, results: dict[str, Any]) -> None:
    """The second process has its own folder, so it receives the checkpoint of the first one."""
    assert results["pairs"]["state"] == "finished"
    assert results["pairs"]["killed"] == list(range(len(VICTIMS)))
    state, epochs, *values = results["pairs"]["trials"][number]
    assert (state, epochs, len(values)) == ("finished", 4, 4)


def test_preemption_repeats_no_batch_and_changes_no_result(results: dict[str, Any]) -> None:
    """After SIGTERM, a node drain and a spot notice, the trial continues with the next batch elsewhere."""
    uninterrupted, preempted, usable = (
        results["spot"][name] for name in ("uninterrupted", "preempted", "usable")
    )
    assert (preempted["state"], preempted["error"]) == ("finished", None)
    assert preempted["values"] == uninterrupted["values"]
    assert len(preempted["steps"]) == len(uninterrupted["steps"])

    processes = list(dict.fromkeys(process for process, _ in preempted["steps"]))
    nodes = [dict(map(tuple, preempted["steps"]))[process] for process in processes]
    assert len(processes) == 4
    assert len(set(nodes[1:])) == 3, "a trial ran on a drained node"
    assert not {nodes[1], nodes[2]} & set(usable), "the node with the spot notice is not drained"
    assert nodes[3] in usable

    matches = [re.findall(r"after (\d+) batches of epoch (\d)", note) for note in preempted["notes"]]
    positions = [(int(done), int(epoch)) for ((done, epoch),) in matches]
    batches = len(uninterrupted["steps"]) // 3
    steps_before = [(epoch - 1) * batches + done for done, epoch in positions]
    assert [steps // batches for steps in steps_before] == [0, 1, 2]
    steps = [sum(process == one for one, _ in preempted["steps"]) for process in processes]
    assert list(itertools.accumulate(steps)) == [*steps_before, 3 * batches]
