"""A Ray of two nodes on this machine: the data is put on both, and a GPU that is none is said."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig
from tune_rescon.data import describe
from tune_rescon.errors import DataError, ResourceError
from tune_rescon.spaces import load_space
from tune_rescon.tuning.execution.measuring import measured_on_gpu
from tune_rescon.tuning.execution.staging import stage_data
from tune_rescon.tuning.packing import largest_trial

pytestmark = pytest.mark.ray

NEED = {"CPU": 1.0, "GPU": 0.0}


@pytest.fixture(scope="module", autouse=True)
def _two_nodes(short_tmp: Path) -> Iterator[None]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_tmp))
        patch.setitem(os.environ, "RAY_USAGE_STATS_ENABLED", "0")
        small = {"object_store_memory": 80 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
        cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
        ray.shutdown()
        cluster.shutdown()


def stage(dataset: DatasetConfig, folder: Path, need: dict[str, float] = NEED) -> list[str]:
    said: list[str] = []
    stage_data([dataset], data_root=folder / "data", cache_root=folder / "cache", need=need, say=said.append)
    return said


def test_the_other_machine_decodes_before_a_trial_does(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            shade = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(shade).save(tmp_path / "images" / name / f"{number}.png")
    images = str(tmp_path / "images")
    said = stage(DatasetConfig(name="folder", path=images, val_fraction=0.5), tmp_path)
    assert said == ["The data is put on 1 other machine"]
    assert list((tmp_path / "cache").iterdir())


def test_a_machine_without_the_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^on [\d.]+: .*nowhere"):
        stage(DatasetConfig(name="folder", path=str(tmp_path / "nowhere")), tmp_path)


def test_machines_that_no_trial_fits_on_are_left_alone(tmp_path: Path) -> None:
    nowhere = DatasetConfig(name="folder", path=str(tmp_path / "nowhere"))
    assert stage(nowhere, tmp_path, {"CPU": 8.0}) == []


def test_a_gpu_that_torch_cannot_use_is_said(tmp_path: Path) -> None:
    space = load_space("digits", ["resources_per_trial.gpu=auto"])
    facts = {"digits": describe(space.dataset, data_root=tmp_path)}
    with pytest.raises(ResourceError, match='device "cuda" needs a CUDA GPU that torch can use'):
        measured_on_gpu(*largest_trial(space, facts))
