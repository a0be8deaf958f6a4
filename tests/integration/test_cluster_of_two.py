"""A Ray of two nodes on this machine: the data is put on both, and a GPU that is none is said.

In a process of its own: a process can be in one Ray only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.ray

#: Says what came of staging images that are there, images that are not, on machines too small for a trial,
#: and of measuring on a GPU that only Ray believes in.
DRIVER = """
import json, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import TuneResconError
from tune_rescon.spaces import load_space
from tune_rescon.tuning.execution.measuring import measured_on_gpu
from tune_rescon.tuning.execution.staging import stage_data
from tune_rescon.tuning.packing import largest_trial

folder = Path(sys.argv[1])
small = {"object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
ray.init(address=cluster.address, log_to_driver=False)

def stage(path, need):
    said = []
    dataset = DatasetConfig(name="folder", path=str(folder / path), val_fraction=0.5)
    roots = {"data_root": folder / "data", "cache_root": folder / "cache"}
    try:
        stage_data([dataset], **roots, need=need, say=said.append)
    except TuneResconError as error:
        said.append(str(error))
    return said

def measure():
    space = load_space("digits", ["resources_per_trial.gpu=auto"])
    try:
        facts = {"digits": describe(space.dataset, data_root=folder)}
        measured_on_gpu(*largest_trial(space, facts), cache_root=folder / "cache")
    except TuneResconError as error:
        return str(error)

print(json.dumps({
    "images": stage("images", {"CPU": 1.0, "GPU": 0.0}),
    "cached": [path.name for path in (folder / "cache").iterdir()],
    "nowhere": stage("nowhere", {"CPU": 1.0}),
    "too small": stage("nowhere", {"CPU": 8.0}),
    "measured": measure(),
}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def said(
    ask_driver: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            shade = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(shade).save(folder / "images" / name / f"{number}.png")
    return ask_driver(DRIVER, str(folder))


def test_the_other_machine_decodes_before_a_trial_does(said: dict[str, Any]) -> None:
    assert said["images"] == ["The data is put on 1 other machine"]
    assert said["cached"]


def test_a_machine_without_the_images_is_named(said: dict[str, Any]) -> None:
    assert said["nowhere"][1].startswith("on ")
    assert "nowhere" in said["nowhere"][1]


def test_machines_that_no_trial_fits_on_are_left_alone(said: dict[str, Any]) -> None:
    assert said["too small"] == []


def test_a_gpu_that_torch_cannot_use_is_said(said: dict[str, Any]) -> None:
    assert said["measured"].startswith('device "cuda" needs a CUDA GPU that torch can use')
