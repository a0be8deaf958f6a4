"""A graph capture that hangs ends its process, and the next trial does not capture."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.forked import run_script
from tune_rescon.training.cuda_graphs import HangWatchdog

#: Hangs in C like a call of a driver: PyDLL does not release the interpreter's lock.
HANG_IN_C = """
import ctypes, sys
from pathlib import Path
from tune_rescon.training.cuda_graphs import HangWatchdog

with HangWatchdog(folder=Path(sys.argv[1]), key="a").watching(float(sys.argv[2])):
    ctypes.PyDLL(None).{call}
"""

RunHanging = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stalled"


@pytest.fixture
def run(folder: Path) -> RunHanging:
    def run_call(call: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
        return run_script(HANG_IN_C.format(call=call), str(folder), str(timeout))

    return run_call


def test_a_hanging_process_is_ended_and_leaves_its_traceback(run: RunHanging, folder: Path) -> None:
    watchdog = HangWatchdog(folder=folder, key="a")
    assert watchdog.earlier_hang() is None
    assert run("sleep(600)", timeout=0.2).returncode == 1
    evidence = watchdog.earlier_hang()
    assert evidence is not None
    assert 'File "<string>", line 7' in evidence.read_text()
    assert HangWatchdog(folder=folder, key="another").earlier_hang() is None


def test_a_crash_leaves_no_evidence_of_a_hang(run: RunHanging, folder: Path) -> None:
    assert run("abort()", timeout=60).returncode < 0
    assert len(list(folder.iterdir())) == 1
    assert HangWatchdog(folder=folder, key="a").earlier_hang() is None


def test_a_block_that_returns_is_no_longer_watched(run: RunHanging, folder: Path) -> None:
    process = run("usleep(1)\nimport time; time.sleep(2.5)", timeout=2)
    assert (process.returncode, process.stderr) == (0, "")
    assert list(folder.iterdir()) == []


def test_an_error_is_raised_and_leaves_no_evidence_of_a_hang(folder: Path) -> None:
    watchdog = HangWatchdog(folder=folder, key="a")

    def raise_in_block() -> None:
        with watchdog.watching(60):
            assert [file.name.split(".")[1] for file in folder.iterdir()] == [str(os.getpid())]
            raise ValueError("not recorded")

    with pytest.raises(ValueError, match="not recorded"):
        raise_in_block()
    assert list(folder.iterdir()) == []


def test_an_unwritable_folder_disables_the_watchdog(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file")
    with HangWatchdog(folder=folder, key="a").watching(60):
        assert "a CUDA graph that hangs is not ended" in caplog.text
    assert HangWatchdog(folder=folder, key="a").earlier_hang() is None
