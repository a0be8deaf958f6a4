"""What the libraries say goes to the log file, and all is put back."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from tune_rescon.tuning.execution.noise import library_log


@pytest.mark.parametrize("name", ["ray.tune", "optuna", "mlflow.store", "pytorch_lightning", "tune_rescon.x"])
def test_records_go_to_the_file_and_not_to_the_terminal(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    loud = logging.getLogger(name.split(".")[0])
    own = logging.StreamHandler()
    loud.addHandler(own)
    try:
        with library_log(tmp_path / "log"):
            logging.getLogger(name).warning("a line for the log")
        assert own in loud.handlers
    finally:
        loud.removeHandler(own)
    assert f"WARNING {name}: a line for the log" in (tmp_path / "log").read_text()
    assert "a line for the log" not in "".join(capfd.readouterr())


def test_pythons_warnings_go_there_too(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with library_log(tmp_path / "log"):
            warnings.warn("an old spelling", DeprecationWarning, stacklevel=1)
    assert "an old spelling" in (tmp_path / "log").read_text()


def test_afterwards_logging_is_as_it_was(tmp_path: Path) -> None:
    root, ray = logging.getLogger(), logging.getLogger("ray")
    before = (list(root.handlers), root.level, ray.propagate, list(ray.handlers), warnings.showwarning)
    with pytest.raises(ValueError, match="amid"), library_log(tmp_path / "log"):
        raise ValueError("amid")
    after = (list(root.handlers), root.level, ray.propagate, list(ray.handlers), warnings.showwarning)
    assert after == before
