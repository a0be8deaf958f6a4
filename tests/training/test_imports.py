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
