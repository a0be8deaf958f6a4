"""The comparison of ``benchmarks/inference.py``: every format gives the same answers on real images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from inference import COMPARED, forms, real_pixels, same, trained

pytestmark = [pytest.mark.torch, pytest.mark.shared, pytest.mark.nightly, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 of each of CIFAR-10's classes, half of them for validation."""
    folder = tmp_path_factory.mktemp("photographs")
    with zipfile.ZipFile(shared / "data" / "cifar10-jpeg.zip") as archive:
        found: dict[str, int] = {}
        for name in archive.namelist():
            *_, part, label, file = ("", "", *Path(name).parts)
            number = found.setdefault(label, 0)
            if part == "train" and file.endswith((".jpg", ".jpeg")) and number < 60:
                found[label] += 1
                target = folder / ("train" if number % 2 else "val") / label / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return folder


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """On a busy machine torch's threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_every_format_gives_the_same_result_on_real_images(photographs: Path, tmp_path: Path) -> None:
    pixels_BCHW = real_pixels(str(photographs), tmp_path)
    assert pixels_BCHW.shape == (COMPARED, 3, 32, 32)
    made = forms(*trained("cifar_attention56"), tmp_path, threads=1)
    assert {"torch eager", "torch-export", "onnx"} <= set(made)
    row = same(made, pixels_BCHW)
    assert row.met, row.measured
