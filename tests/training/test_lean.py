"""Libraries that a training process does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.torch

SCRIPT = """
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
    raise AssertionError("a plot without what it needs")
import_lean_torchmetrics()

# What others ask is answered as before.
from lightning_utilities.core.imports import RequirementCache, package_available

assert RequirementCache("matplotlib")
assert package_available("scipy")
"""


def test_a_trials_process_imports_no_plots_and_no_torchvision() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
