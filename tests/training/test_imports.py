"""Libraries that ``tune_rescon.training`` and a trial's process do not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Prints the modules that are imported after each of three steps on a line, and then checks what remains of
#: torchmetrics. One process, because the import of torch and Lightning takes seconds.
IMPORTS = """
import sys
from tune_rescon.training import EpochReport
print(*sys.modules)

from tune_rescon.lazy import import_lean_torchmetrics
import_lean_torchmetrics()
import tune_rescon.training.trial
print(*sys.modules)

from tune_rescon.training import build_step, load_trained, train_trial
print(*sys.modules, flush=True)

import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

labels = torch.tensor([0, 1, 2, 1])
assert MulticlassAccuracy(3, average="micro")(labels, labels) == 1
MulticlassCalibrationError(3)(torch.eye(3)[labels], labels)
try:
    MulticlassAccuracy(3).plot(torch.tensor(1.0))
except ModuleNotFoundError as error:
    assert "matplotlib" in str(error)
else:
    raise AssertionError("plot() must need matplotlib")
import_lean_torchmetrics()

# The answers to other packages are unchanged.
from lightning_utilities.core.imports import RequirementCache, package_available

assert RequirementCache("matplotlib")
assert package_available("scipy")
"""


@pytest.fixture(scope="module")
def process() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)


@pytest.fixture
def imported(process: subprocess.CompletedProcess[str]) -> list[set[str]]:
    """The modules after the import of a report, of a trial's process, and of what a user calls."""
    modules = [set(line.split()) for line in process.stdout.splitlines()]
    assert len(modules) == 3, process.stderr
    return modules


def test_importing_reports_does_not_import_torch(imported: list[set[str]]) -> None:
    assert not imported[0] & {"torch", "pytorch_lightning", "ray", "mlflow", "optuna"}


@pytest.mark.torch
def test_importing_training_imports_no_ray_mlflow_or_optuna(imported: list[set[str]]) -> None:
    modules = imported[2]
    assert "torch" in modules
    assert not modules & {"ray", "mlflow", "optuna"}
    assert not any(name.startswith(("tune_rescon.tuning", "tune_rescon.tracking")) for name in modules)


@pytest.mark.torch
def test_a_trials_process_imports_no_plots_and_no_torchvision(imported: list[set[str]]) -> None:
    assert not imported[1] & {"matplotlib", "scipy", "sklearn", "torchvision"}


@pytest.mark.torch
def test_a_trials_process_has_what_it_uses_of_torchmetrics(
    process: subprocess.CompletedProcess[str],
) -> None:
    assert process.returncode == 0, process.stderr
