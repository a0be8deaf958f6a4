"""Imports of the commands: nothing slow before their first line, and no unused library.

The tests check ``sys.modules`` and not the time, which depends on the machine's other work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

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

#: The commands of a user, and the beginning of their first line. PICTURE is a file.
COMMANDS = {
    "search": ("search --space digits", "digits: preparing the data, then starting Ray"),
    "resume": ("search --resume s", "Resuming s from"),
    "train": ("train --from s", "Preparing the training of s"),
    "preset": ("train --preset attention56", "Preparing the training of attention56"),
    "predict": ("predict s PICTURE", "Loading s"),
    "export": ("export s --format onnx --output a.onnx", "Loading s"),
    "report": ("report s", "Reading s"),
    "sync": ("report s --sync", "Reading s to send MLflow the missing updates"),
    "list": ("report --list", "Reading the storage"),
}

#: Imports all commands and runs each up to its first output, in a fork. Prints this output and the modules
#: imported by then, of one command on a line.
FIRST_OUTPUTS = """
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
commands = json.loads(sys.argv[1])
mains = [importlib.import_module(f"tune_rescon.{module}").main for module, *_ in commands]
for main, (_, *arguments) in zip(mains, commands, strict=True):
    if not (process := os.fork()):
        main(arguments)
        os._exit(1)
    if os.waitpid(process, 0)[1]:
        os._exit(1)
"""

#: Executes statements, and prints the modules that are imported after each on a line.
PRINT_MODULES = """
import json, sys
for statement in json.loads(sys.argv[1]):
    exec(statement)
    print(json.dumps(sorted(sys.modules)))
"""


def _run(script: str, arguments: list[Any]) -> list[Any]:
    """Run a script with its arguments as one JSON text, and return the JSON values of its lines."""
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def first_outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """The first output of each command, and the modules that are imported by then."""
    picture = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(picture)
    commands = [line.replace("PICTURE", str(picture)).split() for line, _ in COMMANDS.values()]
    return dict(zip(COMMANDS, _run(FIRST_OUTPUTS, commands), strict=True))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_slow_library_is_imported_before_the_first_output(
    name: str, first_outputs: dict[str, tuple[str, list[str]]]
) -> None:
    text, modules = first_outputs[name]
    _, first_line = COMMANDS[name]
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


@pytest.fixture(scope="module")
def imported_slow_libraries() -> dict[str, set[str]]:
    """The slow libraries that are imported after each part.

    Parts that need the same libraries are executed in one process, because the import of torch takes seconds.
    If one of them imports another library, it is also there after the next ones.
    """
    # The import of torch's compiler takes as long as that of torch itself.
    slow = {*SLOW_LIBRARIES, "torch._dynamo"}
    imported: dict[str, set[str]] = {}
    for libraries in (set(), {"torch"}, {"plotly"}):
        parts = {part: text for part, (text, needed) in NEEDED_LIBRARIES.items() if needed == libraries}
        modules = _run(PRINT_MODULES, list(parts.values()))
        imported |= {part: slow.intersection(one) for part, one in zip(parts, modules, strict=True)}
    return imported


@pytest.mark.parametrize("part", NEEDED_LIBRARIES)
def test_no_command_imports_a_library_that_it_does_not_use(
    part: str, imported_slow_libraries: dict[str, set[str]]
) -> None:
    _, needed = NEEDED_LIBRARIES[part]
    assert imported_slow_libraries[part] == needed
