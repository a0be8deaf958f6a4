"""Libraries that ``tune_rescon.training`` and a trial's process do not import."""

from __future__ import annotations

import subprocess
import sys

import pytest


def _loaded_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_importing_reports_does_not_import_torch() -> None:
    modules = _loaded_after("from tune_rescon.training import EpochReport")
    assert not modules & {"torch", "pytorch_lightning", "ray", "mlflow", "optuna"}


@pytest.mark.torch
def test_importing_training_imports_no_ray_mlflow_or_optuna() -> None:
    modules = _loaded_after("from tune_rescon.training import build_step, load_trained, train_trial")
    assert "torch" in modules
    assert not modules & {"ray", "mlflow", "optuna"}
    assert not any(name.startswith(("tune_rescon.tuning", "tune_rescon.tracking")) for name in modules)


LEAN_PROCESS = """
import sys
from tune_rescon.lazy import import_lean_torchmetrics

import_lean_torchmetrics()
import tune_rescon.training.trial

assert not {"matplotlib", "scipy", "sklearn", "torchvision"} & set(sys.modules)
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


@pytest.mark.torch
def test_a_trials_process_imports_no_plots_and_no_torchvision() -> None:
    subprocess.run([sys.executable, "-c", LEAN_PROCESS], check=True)
