"""A Ray of four nodes on this machine: images on all of them, trials of two processes, spot machines.

One driver in a process of its own does everything on one cluster, because a process can be in one Ray only
and a cluster takes long to start. Its head runs no trials, the other three have a core each.
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

#: What is killed, once, after the second epoch of a trial of two processes: the process that trains with the
#: first one, or the first one.
VICTIMS = ["ray::RankActor", "ray::ImplicitFunc"]

#: A search of trials of two processes, one for each victim.
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
def found(
    ask_driver: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What tests/integration/four_nodes.py found, by its sections."""
    folder = tmp_path_factory.mktemp("four")
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            shade = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(shade).save(folder / "images" / name / f"{number}.png")
    script = Path(__file__).with_name("four_nodes.py").read_text()
    given = {"folder": str(folder), "victims": VICTIMS, "pairs": PAIRS, "alone": SINGLE_PROCESS}
    return ask_driver(script, json.dumps(given))


def test_other_machines_prepare_the_data_before_trials_start(found: dict[str, Any]) -> None:
    assert found["staging"]["images"] == ["Preparing the data on 3 other machines"]
    assert found["staging"]["cached"]


def test_a_machine_without_the_images_is_named(found: dict[str, Any]) -> None:
    error = found["staging"]["nowhere"][1]
    assert error.startswith("on ")
    assert "nowhere" in error


def test_a_machine_with_other_images_is_named(found: dict[str, Any]) -> None:
    error = found["staging"]["others"][1]
    assert error.startswith("on ")
    assert "other images in folder on " in error


def test_machines_too_small_for_a_trial_are_not_staged(found: dict[str, Any]) -> None:
    assert found["staging"]["too small"] == []


def test_a_gpu_that_torch_cannot_use_is_reported(found: dict[str, Any]) -> None:
    assert found["staging"]["measured"].startswith('device "cuda" needs a CUDA GPU that torch can use')


@pytest.mark.parametrize("number", range(len(VICTIMS)), ids=VICTIMS)
def test_a_two_machine_trial_resumes_after_a_process_is_killed(number: int, found: dict[str, Any]) -> None:
    """The second machine's process has a folder of its own: it is sent the first one's checkpoint."""
    assert found["pairs"]["state"] == "finished"
    assert found["pairs"]["struck"] == list(range(len(VICTIMS)))
    state, epochs, *values = found["pairs"]["trials"][number]
    assert (state, epochs, len(values)) == ("finished", 4, 4)


def test_preemption_repeats_no_batch_and_changes_no_result(found: dict[str, Any]) -> None:
    """By a SIGTERM, a drained node, and EC2's spot notice; each time with the next batch, elsewhere."""
    whole, struck, usable = (found["spot"][name] for name in ("whole", "struck", "usable"))
    assert (struck["state"], struck["error"]) == ("finished", None)
    assert struck["values"] == whole["values"]
    assert len(struck["steps"]) == len(whole["steps"])

    processes = list(dict.fromkeys(process for process, _ in struck["steps"]))
    nodes = [dict(map(tuple, struck["steps"]))[process] for process in processes]
    assert len(processes) == 4
    assert len(set(nodes[1:])) == 3, "nothing goes to a drained machine"
    assert not {nodes[1], nodes[2]} & set(usable), "the process that had the notice drained its machine"
    assert nodes[3] in usable

    places = [re.findall(r"after (\d+) batches of epoch (\d)", note) for note in struck["notes"]]
    left = [(int(done), int(epoch)) for ((done, epoch),) in places]
    batches = len(whole["steps"]) // 3
    taken_before = [(epoch - 1) * batches + done for done, epoch in left]
    assert [taken // batches for taken in taken_before] == [0, 1, 2]
    taken = [sum(process == one for one, _ in struck["steps"]) for process in processes]
    assert list(itertools.accumulate(taken)) == [*taken_before, 3 * batches]
