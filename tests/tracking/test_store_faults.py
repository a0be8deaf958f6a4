"""A local store that is locked or on a full disk: the search continues, and all updates arrive later."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.mlflow_in_process import InProcessWorker
from tests.waiting import wait_until
from tune_rescon.tracking import MlflowWriter, worker

SendSearch = Callable[[MlflowWriter, Callable[[], object]], int]
AssertComplete = Callable[[str], None]
MakeWriter = Callable[..., MlflowWriter]

# MLflow's process needs seconds to start, and SQLite waits five seconds for a lock.
# Tests that are not nightly call MLflow in this process; test_worker.py and test_server.py have its own.
pytestmark = pytest.mark.timeout(120)

#: Locks a database exclusively until standard input ends.
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Lock the database from another process."""
    command = [sys.executable, "-c", LOCK, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.close()


def wait_for_error(writer: MlflowWriter, message: str) -> None:
    wait_until(lambda: message in writer.last_error)


def wait_for_a_run(writer: MlflowWriter) -> None:
    """Wait until the writer's process has started and created a run."""
    wait_until(lambda: writer.opened_runs() != [])


def test_all_updates_arrive_after_a_lock_at_the_start(
    store: str,
    tmp_path: Path,
    make_fast_writer: MakeWriter,
    send_search: SendSearch,
    assert_complete: AssertComplete,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_BUSY_SECONDS", 0.1)
    with locked(tmp_path / "mlflow.db"):
        writer = make_fast_writer(store, InProcessWorker)
        updates = send_search(writer, lambda: None)
        wait_for_error(writer, "database is locked")
        assert writer.pending_updates == updates
    assert writer.close(200) == 0
    assert writer.last_error == ""
    assert_complete(store)


@pytest.mark.nightly
def test_all_updates_arrive_after_a_lock_half_way(
    store: str,
    tmp_path: Path,
    make_fast_writer: MakeWriter,
    send_search: SendSearch,
    assert_complete: AssertComplete,
) -> None:
    check_updates_after_fault(
        make_fast_writer(store),
        send_search,
        lambda: locked(tmp_path / "mlflow.db"),
        "database is locked",
    )
    assert_complete(store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system can only be mounted by root, and not in every container")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Fill the file system to the last byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        space = os.statvfs(folder)
        file.write(b"\0" * (space.f_bavail * space.f_frsize))
    yield
    ballast.unlink()


def test_all_updates_arrive_after_the_disk_was_full(
    empty_store: Path,
    small_disk: Path,
    make_fast_writer: MakeWriter,
    send_search: SendSearch,
    assert_complete: AssertComplete,
) -> None:
    shutil.copy(empty_store, small_disk / "mlflow.db")
    store = f"sqlite:///{small_disk / 'mlflow.db'}"
    writer = make_fast_writer(store, InProcessWorker)
    check_updates_after_fault(writer, send_search, lambda: full_disk(small_disk), "full")
    assert_complete(store)


@contextmanager
def disk_errors(other_processes: set[psutil.Process]) -> Iterator[None]:
    """Make all writes of child processes fail, except those of ``other_processes``. Works without root."""
    limits = {}
    for process in set(psutil.Process().children(recursive=True)) - other_processes:
        _, hard = limits[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    assert limits, "no process writes to the store"
    yield
    for pid, limit in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)


@pytest.mark.nightly
def test_all_updates_arrive_after_disk_errors(
    store: str, make_fast_writer: MakeWriter, send_search: SendSearch, assert_complete: AssertComplete
) -> None:
    # A Ray cluster of other tests must not be affected: it would end this process too.
    other_processes = set(psutil.Process().children(recursive=True))
    check_updates_after_fault(
        make_fast_writer(store), send_search, lambda: disk_errors(other_processes), "disk I/O error"
    )
    assert_complete(store)


def check_updates_after_fault(
    writer: MlflowWriter,
    send_search: SendSearch,
    fault: Callable[[], AbstractContextManager[None]],
    message: str,
) -> None:
    """Inject ``fault`` half way through a search; all updates must arrive after the fault has ended."""
    active_fault = ExitStack()

    def halfway() -> None:
        wait_for_a_run(writer)
        active_fault.enter_context(fault())

    updates = send_search(writer, halfway)
    with active_fault:
        wait_for_error(writer, message)
        assert 0 < writer.pending_updates <= updates
    assert writer.close(200) == 0
    assert writer.last_error == ""
