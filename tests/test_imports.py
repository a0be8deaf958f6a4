"""Imports of the commands: nothing slow before their first line, and no unused library.

The tests check ``sys.modules`` and not the time, which depends on the machine's other work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

#: The import of each takes between 0.3 and 5 seconds.
SLOW_LIBRARIES = {
    "lightning_fabric",
    "matplotlib",
    "mlflow",
    "pandas",
    "plotly",
    "pytorch_lightning",
    "ray",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "torch",
    "torchmetrics",
    "torchvision",
}

#: Runs a command up to its first output, and prints the modules imported by then.
FIRST_OUTPUT = """
import importlib, json, os, sys

class FirstWrite:
    encoding = "utf-8"

    def write(self, text):
        text = text.decode() if isinstance(text, bytes) else text  # click tries which one is taken
        if text.strip():
            print(json.dumps([text.strip(), sorted(sys.modules)]), file=sys.__stdout__, flush=True)
            os._exit(0)
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return True

sys.stdout = sys.stderr = FirstWrite()
module, *arguments = sys.argv[1:]
importlib.import_module(f"tune_rescon.{module}").main(arguments)
"""

#: Executes a statement, and prints the imported modules.
PRINT_MODULES = "import json, sys; exec(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)
    return path


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(30)  # starts an interpreter
@pytest.mark.parametrize(
    ("command", "first_line"),
    [
        pytest.param("search --space digits", "digits: preparing the data, then starting Ray", id="search"),
        pytest.param("search --resume s", "Resuming s from", id="resume"),
        pytest.param("train --from s", "Preparing the training of s", id="train"),
        pytest.param("train --preset attention56", "Preparing the training of attention56", id="preset"),
        pytest.param("predict s PICTURE", "Loading s", id="predict"),
        pytest.param("export s --format onnx --output a.onnx", "Loading s", id="export"),
        pytest.param("report s", "Reading s", id="report"),
        pytest.param("report s --sync", "Reading s to send MLflow the missing updates", id="sync"),
        pytest.param("report --list", "Reading the storage", id="list"),
    ],
)
def test_no_slow_library_is_imported_before_the_first_output(
    command: str, first_line: str, image_file: Path
) -> None:
    module, *arguments = (str(image_file) if word == "PICTURE" else word for word in command.split())
    text, modules = json.loads(_run(FIRST_OUTPUT, module, *arguments))
    assert text.startswith(first_line)
    assert SLOW_LIBRARIES.intersection(modules) == set()


#: The slow libraries that a part of the package needs.
NEEDED_LIBRARIES = {
    "search, before Ray": ("from tune_rescon.reporting import run_with_display", set()),
    "the digits": (
        "import pathlib, tune_rescon.data.sources as b; b.load_arrays('digits', pathlib.Path('data'))",
        set(),
    ),
    "a checkpoint's reader": ("from tune_rescon.training import load_trained", {"torch"}),
    "predict, export": (
        "from tune_rescon.inference import batches_of, export_model, find_pictures, load_model, predictions",
        {"torch"},
    ),
    "report": (
        "from tune_rescon.reporting import print_result; from tune_rescon.tuning import read_search",
        set(),
    ),
    "report --html": ("from tune_rescon.reporting import write_report", {"plotly"}),
    "reproduce": ("from tune_rescon.finals import PUBLISHED, find_rows", set()),
    "report --sync": ("from tune_rescon.tuning import sync_tracking", set()),
    "the description of an external network": (
        (
            "from tune_rescon.spaces import load_space, preview, trial_config;"
            " from tune_rescon.models import describe_network;"
            " space = load_space('attention_vs_resnet'); configs = [trial_config(space, row) for row in"
            " preview(space, 20)]; [describe_network(one, classes=10, in_channels=3) for one in configs]"
        ),
        set(),
    ),
    "a simulated search": (
        "from tune_rescon.testing import SearchConformance, SimulatedSearch, Simulation, simulate",
        set(),
    ),
    "networks": ("from tune_rescon.models import build_network", {"torch"}),
}


@pytest.mark.timeout(60)  # starts an interpreter, some import torch
@pytest.mark.parametrize("part", NEEDED_LIBRARIES)
def test_no_command_imports_a_library_that_it_does_not_use(part: str) -> None:
    statement, needed = NEEDED_LIBRARIES[part]
    # The import of torch's compiler takes as long as that of torch itself.
    slow = {*SLOW_LIBRARIES, "torch._dynamo"}
    assert slow.intersection(json.loads(_run(PRINT_MODULES, statement))) == needed
