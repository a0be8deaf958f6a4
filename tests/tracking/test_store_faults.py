"""A local store that is locked or on a full disk: the search continues, and all updates arrive later."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tune_rescon.tracking import MlflowWriter

SendSearch = Callable[[MlflowWriter, Callable[[], object]], tuple[int, float]]
Complete = Callable[[str], None]
MakeWriter = Callable[[str], MlflowWriter]

# MLflow's process starts in seconds, and SQLite waits for five before it gives a lock up.
pytestmark = pytest.mark.timeout(120)

#: Keeps a database from all others, readers too, until its input ends.
LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process has the database for itself."""
    command = [sys.executable, "-c", LOCK, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield
        process.stdin.close()


def wait_for_error(writer: MlflowWriter, words: str) -> None:
    end = time.monotonic() + 200
    while words not in writer.last_error:
        assert time.monotonic() < end, f"waited for {words!r}, not {writer.last_error!r}"
        time.sleep(0.05)


def wait_for_a_run(writer: MlflowWriter) -> None:
    """Some of it has been sent: before that, the writer's process is only starting."""
    end = time.monotonic() + 200
    while not writer.opened_runs():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_all_updates_arrive_after_a_lock_at_the_start(
    store: str,
    tmp_path: Path,
    make_fast_writer: MakeWriter,
    send_search: SendSearch,
    assert_complete: Complete,
) -> None:
    with locked(tmp_path / "mlflow.db"):
        writer = make_fast_writer(store)
        shown, slowest = send_search(writer, lambda: None)
        assert slowest < 1
        wait_for_error(writer, "database is locked")
        assert writer.pending_updates == shown
    assert writer.close(200) == 0
    assert writer.last_error == ""
    assert_complete(store)


@pytest.mark.nightly
def test_all_updates_arrive_after_a_lock_half_way(
    store: str,
    tmp_path: Path,
    make_fast_writer: MakeWriter,
    send_search: SendSearch,
    assert_complete: Complete,
) -> None:
    survives(
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
def full(folder: Path) -> Iterator[None]:
    """Not a byte is left."""
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
    assert_complete: Complete,
) -> None:
    shutil.copy(empty_store, small_disk / "mlflow.db")
    store = f"sqlite:///{small_disk / 'mlflow.db'}"
    survives(make_fast_writer(store), send_search, lambda: full(small_disk), "full")
    assert_complete(store)


@contextmanager
def no_longer_file(others: set[psutil.Process]) -> Iterator[None]:
    """What this process has started can write no file, but for ``others``.

    As a disk with an error, also where nobody is root.
    """
    limits = {}
    for process in set(psutil.Process().children(recursive=True)) - others:
        _, hard = limits[process.pid] = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, hard))
    assert limits, "there is nobody who writes"
    yield
    for pid, limit in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)


@pytest.mark.nightly
def test_all_updates_arrive_after_disk_errors(
    store: str, make_fast_writer: MakeWriter, send_search: SendSearch, assert_complete: Complete
) -> None:
    # A Ray that other tests have started would die of it, and take this process with it a minute later.
    others = set(psutil.Process().children(recursive=True))
    survives(make_fast_writer(store), send_search, lambda: no_longer_file(others), "disk I/O error")
    assert_complete(store)


def survives(
    writer: MlflowWriter,
    send_search: SendSearch,
    fault: Callable[[], AbstractContextManager[None]],
    words: str,
) -> None:
    """A search with a ``fault`` from half way to its end is sent after the fault; ``words`` is its error."""
    lasting = ExitStack()

    def halfway() -> None:
        wait_for_a_run(writer)
        lasting.enter_context(fault())

    shown, slowest = send_search(writer, halfway)
    assert slowest < 1
    with lasting:
        wait_for_error(writer, words)
        assert 0 < writer.pending_updates <= shown
    assert writer.close(200) == 0
    assert writer.last_error == ""
