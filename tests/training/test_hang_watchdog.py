"""A recording that never comes back ends its process, and the next trial does without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import LONGEST_WAIT
from tune_rescon.training.cuda_graphs import HangWatchdog

#: Hangs in C as a driver's call does: PyDLL keeps the interpreter's lock.
STANDS_STILL = """
import ctypes, sys
from pathlib import Path
from tune_rescon.training.cuda_graphs import HangWatchdog

with HangWatchdog(folder=Path(sys.argv[1]), key="a").watching(float(sys.argv[2])):
    ctypes.PyDLL(None).{call}
"""

Ran = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stalled"


@pytest.fixture
def run(folder: Path) -> Ran:
    def ran(call: str, *, patience: float) -> subprocess.CompletedProcess[bytes]:
        program = [sys.executable, "-c", STANDS_STILL.format(call=call), str(folder), str(patience)]
        return subprocess.run(program, timeout=LONGEST_WAIT, capture_output=True, check=False)

    return ran


def test_a_hanging_process_is_ended_and_leaves_its_traceback(run: Ran, folder: Path) -> None:
    watch = HangWatchdog(folder=folder, key="a")
    assert watch.found() is None
    assert run("sleep(600)", patience=0.2).returncode == 1
    evidence = watch.found()
    assert evidence is not None
    assert 'File "<string>", line 7' in evidence.read_text()
    assert HangWatchdog(folder=folder, key="another").found() is None


def test_a_crash_leaves_no_evidence_of_a_hang(run: Ran, folder: Path) -> None:
    assert run("abort()", patience=60).returncode < 0
    assert len(list(folder.iterdir())) == 1
    assert HangWatchdog(folder=folder, key="a").found() is None


def test_a_block_that_returns_is_no_longer_watched(run: Ran, folder: Path) -> None:
    done = run("usleep(1)\nimport time; time.sleep(2.5)", patience=2)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(folder.iterdir()) == []


def test_an_error_is_raised_and_leaves_no_evidence_of_a_hang(folder: Path) -> None:
    watch = HangWatchdog(folder=folder, key="a")

    def recording() -> None:
        with watch.watching(60):
            assert [file.name.split(".")[1] for file in folder.iterdir()] == [str(os.getpid())]
            raise ValueError("not recorded")

    with pytest.raises(ValueError, match="not recorded"):
        recording()
    assert list(folder.iterdir()) == []


def test_an_unwritable_folder_disables_the_watchdog(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file")
    with HangWatchdog(folder=folder, key="a").watching(60):
        assert "a recording that hangs is not ended" in caplog.text
    assert HangWatchdog(folder=folder, key="a").found() is None
