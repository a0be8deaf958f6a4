"""The output of libraries goes to the log file; logging is restored afterwards."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tune_rescon.tuning.ray.log_redirect import library_log, redirected_output


@pytest.mark.parametrize("name", ["ray.tune", "optuna", "mlflow.store", "pytorch_lightning", "tune_rescon.x"])
def test_records_go_to_the_file_and_not_to_the_terminal(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noisy = logging.getLogger(name.split(".")[0])
    own = logging.StreamHandler()
    noisy.addHandler(own)
    try:
        with library_log(tmp_path / "log"):
            logging.getLogger(name).warning("a line for the log")
        assert own in noisy.handlers
    finally:
        noisy.removeHandler(own)
    assert f"WARNING {name}: a line for the log" in (tmp_path / "log").read_text()
    assert "a line for the log" not in "".join(capfd.readouterr())


def test_passwords_are_hidden_also_in_a_traceback(tmp_path: Path) -> None:
    with library_log(tmp_path / "log"):
        try:
            raise ConnectionError("no answer from http://ann:s3cret@mlflow:5000/api")
        except ConnectionError:
            logging.getLogger("mlflow").exception("at %s", "postgresql://ann:s3cret@db/studies")
    text = (tmp_path / "log").read_text()
    assert "Traceback" in text
    assert text.count("ann:***@") == 3
    assert "s3cret" not in text


def test_python_warnings_go_to_the_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with library_log(tmp_path / "log"):
            warnings.warn("an old spelling", DeprecationWarning, stacklevel=1)
    assert "an old spelling" in (tmp_path / "log").read_text()


def test_logging_is_restored_afterwards(tmp_path: Path) -> None:
    root, ray = logging.getLogger(), logging.getLogger("ray")
    before = (list(root.handlers), root.level, ray.propagate, list(ray.handlers), warnings.showwarning)
    with pytest.raises(ValueError, match="inside"), library_log(tmp_path / "log"):
        raise ValueError("inside")
    after = (list(root.handlers), root.level, ray.propagate, list(ray.handlers), warnings.showwarning)
    assert after == before


def test_output_to_the_file_descriptors_goes_to_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("before\n")
    with redirected_output(tmp_path / "log"):
        os.write(1, b"from C++\n")
        subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
    os.write(2, b"afterwards\n")
    assert (tmp_path / "log").read_text() == "before\nfrom C++\nfrom a child\n"
    assert "".join(capfd.readouterr()) == "afterwards\n"


#: Prints buffered output before, during and after the redirection.
PROGRAM = """
import sys
from pathlib import Path
from tune_rescon.tuning.ray.log_redirect import redirected_output
sys.stdout.write("first ")
with redirected_output(Path(sys.argv[1])):
    sys.stdout.write("inside")
    if len(sys.argv) > 2:
        raise RuntimeError("a fault of ours")
sys.stdout.write("last")
"""


@pytest.mark.timeout(30)  # each starts an interpreter
@pytest.mark.parametrize("fails", [False, True])
def test_buffers_are_flushed_to_where_they_were_written_and_errors_shown(fails: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), *(["fail"] if fails else [])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (tmp_path / "log").read_text() == "inside"
    if fails:
        assert process.stdout == "first "
        assert process.stderr.endswith("RuntimeError: a fault of ours\n")
    else:
        assert (process.stdout, process.stderr) == ("first last", "")


def test_a_full_disk_loses_records_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with library_log(Path("/dev/full")):
        for _ in range(3):
            logging.getLogger("optuna").warning("x" * 10_000)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
