"""torch's CUDA, the drivers that the shipped files boot, and the driver that is named to the user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from tune_rescon.training.device import oldest_driver

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[2]


def shipped(name: str) -> dict[str, Any]:
    cluster: dict[str, Any] = YAML(typ="safe").load(ROOT / name)
    return cluster


@pytest.fixture
def oldest() -> int:
    """The oldest driver that the CUDA of the installed torch runs on."""
    if torch.version.cuda is None:
        pytest.skip("this torch is built without CUDA")
    oldest = oldest_driver()
    assert oldest is not None, f"tune_rescon.training.device knows no driver for CUDA {torch.version.cuda}"
    return oldest


def test_installed_torch_is_the_pinned_version() -> None:
    pinned = f"torch=={torch.__version__.partition('+')[0]}"
    assert pinned in (ROOT / "constraints.txt").read_text().splitlines()


def test_googles_images_have_a_driver_that_torch_can_use(oldest: int) -> None:
    types = shipped("cluster/gcp.yaml")["available_node_types"].values()
    images = [kind["node_config"]["disks"][0]["initializeParams"]["sourceImage"] for kind in types]
    assert len(images) == 2
    for image in images:
        driver = re.search(r"-nvidia-(\d+)$", image)
        assert driver, f"{image} does not name its driver"
        assert int(driver[1]) >= oldest


def test_amazon_image_is_the_latest_with_an_nvidia_driver() -> None:
    """Its name has no version, so it must be the newest one, which has had driver 580 since October 2025."""
    images = {
        kind["node_config"]["ImageId"] for kind in shipped("cluster.yaml")["available_node_types"].values()
    }
    (image,) = images
    assert image.startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-")
    assert image.endswith("/latest/ami-id")


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml"])
def test_a_container_asks_for_no_newer_driver_than_torch(name: str, oldest: int) -> None:
    """Ray's `-gpu` images have CUDA 12. A tag with a CUDA must not have a newer one than torch."""
    image = shipped(name)["docker"]["image"]
    assert "-gpu" in image or "-cu" in image
    cuda = re.search(r"-cu(\d\d)\d*", image)
    assert cuda is None or (oldest_driver(f"{cuda[1]}.0") or 0) <= oldest


@pytest.mark.parametrize(
    "name", ["cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml", "docs/howto/cluster.md"]
)
def test_files_and_docs_name_the_oldest_supported_driver(name: str, oldest: int) -> None:
    text = " ".join((ROOT / name).read_text().replace("#", " ").split())
    assert re.search(rf"\b{oldest}\b or newer", text)
