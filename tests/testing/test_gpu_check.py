"""``make gpu-check``, tried on a CPU: it runs with torch, torchvision and pytorch-lightning alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from roofline import training_bytes, training_flops
from waiting import Case

from tune_rescon.config import TrialConfig
from tune_rescon.models import resolve_network

ROOT = Path(__file__).resolve().parents[2]

#: The other dependencies of the package; importing one fails as if it were not installed.
BLOCKED_MODULES = (
    "click",
    "cmaes",
    "joblib",
    "mlflow",
    "optuna",
    "plotly",
    "psutil",
    "pydantic",
    "ray",
    "ruamel",
    "sqlalchemy",
)

#: Runs the script as if the package itself were not installed: only its source is there.
RUN_WITHOUT_DEPENDENCIES = f"""
import importlib.metadata, runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED_MODULES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

def version(name, known=importlib.metadata.version):
    if name == "tune_rescon":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

sys.meta_path.insert(0, Absent())
importlib.metadata.version = version
sys.path[:0] = [{str(ROOT / "benchmarks")!r}, {str(ROOT)!r}]
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r}, run_name="__main__")
"""


def run(*arguments: str) -> str:
    command = [sys.executable, "-c", RUN_WITHOUT_DEPENDENCIES, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # leaves the other cores to other tests
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for class_name in ("a", "b"):
            folder = tmp_path / split / class_name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


@pytest.mark.torch
@pytest.mark.nightly
def test_the_script_runs_without_the_rest_of_the_package(images: Path) -> None:
    small = "--device cpu --cases cifar_attention56:4 --rounds 2 --seconds 0.05 --matrix 64 --copy 0.01"
    small += " --ways checkpointed"
    output = run(*small.split(), "--minutes", "0.02", "--images", str(images))
    assert "cifar_attention56, batch 4, n = 2 rounds" in output
    assert re.search(r"plain eager +\d.* images/s .*; ratio \d+\.\d\d\n", output)
    assert re.search(r"checkpointed +\d.* images/s .*; ratio \d+\.\d\d\n", output)
    assert re.search(r"checkpointed first step \d", output)
    roofline = r"roofline +tune_rescon: .* TFLOP/s, \d.*% of the peak in fp32;\n +about \d+ GB/s moved, "
    assert re.search(roofline, output)
    assert re.search(
        r"\| training step on cpu, cifar_attention56, batch 4, .* x, n = 2 \| >= 5 x .* \| missed \|", output
    )
    assert re.search(r"% of the time is the images'", output)
    epochs = re.findall(r"^\| \d+ \| (\d+) \| (\d\.\d+) \| \d+ \|$", output, flags=re.MULTILINE)
    # The number of epochs and the accuracy of the estimate depend on the machine.
    planned = re.search(r"one cosine over (\d+) epochs", output)
    assert planned is not None
    assert [int(epoch) for epoch, _ in epochs] == list(range(1, len(epochs) + 1))
    assert epochs
    assert ("ended before the schedule" in output) is (len(epochs) < int(planned[1]))
    assert "on 16 images" in output
    assert "evaluated on 6 test images" in output


@pytest.mark.torch
@pytest.mark.nightly
def test_a_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    output = run()
    assert output.startswith("no CUDA GPU that torch can use: nothing to check\n")
    assert output.count("| no GPU here | >= 5 x images/s | not measured |") == 3


def test_training_flops_are_six_per_multiply_add() -> None:
    spec = resolve_network(TrialConfig(preset="rescon_attention92_32"), classes=10, in_channels=3)
    assert training_flops(spec) == 6 * 1_089_185_792


def test_training_bytes_grow_with_pixels_and_element_size() -> None:
    specs = [
        resolve_network(TrialConfig(preset="cifar_attention56", image_size=size), classes=10, in_channels=3)
        for size in (32, 64)
    ]
    small, large = (training_bytes(spec, element=2) for spec in specs)
    assert large == 4 * small
    assert training_bytes(specs[0], element=4) == 2 * small
    stem = 3 * (3 + 16) * 32**2
    assert small > 2 * stem


def test_a_case_is_parsed_into_preset_and_batch_size() -> None:
    assert Case.parse("attention56:64") == Case(preset="attention56", batch_size=64)
