"""The head's MLflow server: it is restarted after a crash or a hang, and its database is restored."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from tests.waiting import LONGEST_WAIT, reserved_port, wait_until
from tune_rescon.cluster import main
from tune_rescon.clusters import mlflow_service
from tune_rescon.clusters.mlflow_service import (
    Health,
    MlflowSettings,
    RestartTiming,
    end_mlflow,
    mlflow_command,
    server_command,
    supervise_mlflow,
)
from tune_rescon.errors import ClusterError, StorageError
from tune_rescon.storage import RemoteError, RemoteFolder

#: Supervises a server as the command does, with shorter timeouts.
SCRIPT = """
import logging, sys
from pathlib import Path
from tune_rescon.clusters import mlflow_service
from tune_rescon.clusters.mlflow_service import RestartTiming
from tune_rescon.command import progress_shown
logging.basicConfig(level=logging.INFO)
mlflow_service.COPY_INTERVAL = 0.5
folder, port, keep = sys.argv[1:]
settings = mlflow_service.MlflowSettings(folder=Path(folder), port=int(port), keep=keep or None)
timing = RestartTiming(interval=0.3, timeout=1.0, failures=2, startup_timeout=90, first_pause=0.2)
with progress_shown(print):
    mlflow_service.supervise_mlflow(settings, timing=timing)
"""


class Service:
    """A supervisor in a subprocess, and its MLflow server."""

    def __init__(self, folder: Path, port: int, keep: str = "") -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(port), keep])

    def wait_for_answer(self) -> None:
        wait_until(lambda: self.ask("/health", timeout=5) is not None, every=0.1)

    def ask(self, path: str, data: dict[str, Any] | None = None, *, timeout: float = 20.0) -> bytes | None:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(
            f"{self.uri}{path}", data=body, headers={"Content-Type": "application/json"}
        )
        with suppress(OSError), urllib.request.urlopen(request, timeout=timeout) as answer:
            return bytes(answer.read())
        return None

    def servers(self) -> list[psutil.Process]:
        """Return the server's processes and their guards."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("TUNE_RESCON_MLFLOW_FOLDER") == str(self.folder):
                    found.append(process)
        return found

    def has_no_servers(self) -> bool:
        return not self.servers()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LONGEST_WAIT)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []
    with ExitStack() as ports:

        def start(folder: str = "head", port: int | None = None, keep: str = "") -> Service:
            services.append(Service(tmp_path / folder, port or ports.enter_context(reserved_port()), keep))
            return services[-1]

        yield start
        for service in services:
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()
            try:
                wait_until(service.has_no_servers, every=0.1)
            finally:
                for process in service.servers():
                    process.kill()


@pytest.mark.server
@pytest.mark.nightly
def test_a_killed_or_frozen_server_is_restarted_and_ends_with_supervisor(
    start: Callable[..., Service],
) -> None:
    service = start()
    service.wait_for_answer()
    first = {process.pid for process in service.servers()}

    for pid in first:  # all but the supervisor
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    service.wait_for_answer()
    second = {process.pid for process in service.servers()}
    assert not first & second

    time.sleep(2)  # the supervisor gets an answer, too
    for process in service.servers():
        if "tune_rescon.clusters.guard" not in process.cmdline():
            process.suspend()
    wait_until(lambda: not second & {process.pid for process in service.servers()}, every=0.1)
    service.wait_for_answer()

    # The end of a killed supervisor ends its server, so that the port is free.
    service.end(signal.SIGKILL)
    wait_until(service.has_no_servers, every=0.1)
    restarted = start(port=int(service.uri.rpartition(":")[2]))
    restarted.wait_for_answer()
    assert restarted.end() == 0
    assert not restarted.servers()


@pytest.mark.nightly
@pytest.mark.server
def test_a_new_machine_restores_the_kept_database(start: Callable[..., Service], tmp_path: Path) -> None:
    keep = f"file://{tmp_path / 'bucket'}"
    first = start("first", keep=keep)
    first.wait_for_answer()
    assert first.ask("/api/2.0/mlflow/experiments/create", {"name": "before"}) is not None
    copy = tmp_path / "bucket" / "mlflow.db"
    # The copy is made while the server runs, because a head may be lost without notice.
    wait_until(lambda: "before" in experiments(copy), every=0.1)
    assert first.ask("/api/2.0/mlflow/experiments/create", {"name": "last"}) is not None
    end_mlflow(first.folder)
    assert first.process.wait(LONGEST_WAIT) == 0

    second = start("second", keep=keep)
    second.wait_for_answer()
    found = second.ask("/api/2.0/mlflow/experiments/search", {"max_results": 10})
    assert found is not None
    assert {entry["name"] for entry in json.loads(found)["experiments"]} >= {"before", "last"}
    assert second.end() == 0


def experiments(database: Path) -> set[str]:
    if not database.is_file():
        return set()
    with closing(sqlite3.connect(database)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM experiments")}


def test_the_command_has_one_worker_and_no_password() -> None:
    settings = MlflowSettings(folder=Path("/m"), database="postgresql://u:secret@h/db", artifacts="s3://b/a")
    argv, env = server_command(settings)
    assert "secret" not in " ".join(argv)
    assert env["MLFLOW_BACKEND_STORE_URI"] == "postgresql://u:secret@h/db"
    command_line = " ".join(argv[1:])
    assert (
        "-m mlflow server --workers 1 --host 127.0.0.1 --port 5000 --artifacts-destination s3://b/a"
        in command_line
    )
    assert "--allowed-hosts" not in command_line


def test_database_and_artifacts_default_to_the_folder() -> None:
    argv, env = server_command(MlflowSettings(folder=Path("/m"), allowed_hosts="head:5000"))
    assert env["MLFLOW_BACKEND_STORE_URI"] == "sqlite:////m/mlflow.db"
    assert argv[argv.index("--artifacts-destination") + 1] == "/m/artifacts"
    assert argv[argv.index("--allowed-hosts") + 1] == "head:5000"


def test_a_second_supervisor_reports_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "service.pid").write_text("123\n")
    with FileLock(tmp_path / "service.lock"):
        assert main(["mlflow", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "MLflow is kept running already (process 123)\n"


def test_ending_without_a_server_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlflow", "--end", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "MLflow is not kept running\n"


def test_keep_with_an_external_database_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlflow", "--database", "postgresql://h/db", "--keep", "s3://b/m"]) == 2
    assert "--keep is for the folder's SQLite" in capsys.readouterr().err


def test_an_invalid_keep_url_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mlflow", "--keep", "nope://b/m", "--folder", str(tmp_path)]) == 2
    assert "Error: --keep: must be a directory, or a URL" in capsys.readouterr().err
    assert not (tmp_path / "service.pid").exists()


def test_a_damaged_copy_is_not_restored(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mlflow.db").write_bytes(b"no database" * 100)
    settings = MlflowSettings(folder=tmp_path / "head", keep=str(tmp_path / "kept"))
    with pytest.raises(StorageError, match="--keep: the copy of a database must be one SQLite can read"):
        supervise_mlflow(settings)


def test_no_server_starts_while_the_kept_database_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_event = threading.Event()

    def fail_read(*_: object, **__: object) -> None:
        stop_event.set()
        raise RemoteError("503")

    monkeypatch.setattr(RemoteFolder, "read", fail_read)
    monkeypatch.setattr(mlflow_service, "_Server", lambda _: pytest.fail("the server was started"))
    settings = replace(MlflowSettings(folder=tmp_path), keep=f"file://{tmp_path}/kept")
    with caplog.at_level(logging.WARNING):
        mlflow_service._supervise(settings, stop_event, RestartTiming())
    assert "the kept database cannot be read; next try in 1 s: 503" in caplog.text


class FakeMirror:
    """Records the last copy, which leaves some changes uncopied."""

    def __init__(self, uncopied: int = 0) -> None:
        self.calls: list[str] = []
        self._uncopied = uncopied

    def changed(self) -> None:
        self.calls.append("changed")

    def close(self, _timeout: float) -> int:
        self.calls.append("close")
        return self._uncopied


def test_a_full_disk_does_not_prevent_the_last_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror, stop = FakeMirror(), threading.Event()

    class FakeServer:
        """A server that answers once."""

        def __init__(self, _settings: MlflowSettings) -> None:
            (tmp_path / "mlflow.db").write_bytes(b"x")

        def check(self, _timeout: float) -> Health:
            stop.set()
            return Health.HEALTHY

        def end(self, *, gently: bool) -> None:
            assert gently

    def fail_touch(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mlflow_service, "_open_mirror", lambda *_: mirror)
    monkeypatch.setattr(mlflow_service, "_Server", FakeServer)
    monkeypatch.setattr(Path, "touch", fail_touch)
    mlflow_service._supervise(MlflowSettings(folder=tmp_path), stop, RestartTiming())
    assert mirror.calls == ["changed", "changed", "close"]


def test_an_incomplete_last_copy_is_reported_on_a_full_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeServer:
        """A server that is asked to end before it answers."""

        def __init__(self, _settings: MlflowSettings) -> None:
            signal.raise_signal(signal.SIGTERM)

        def end(self, *, gently: bool) -> None:
            assert gently

    touch = Path.touch

    def fail_touch(path: Path, *arguments: Any, **options: Any) -> None:
        if not path.exists():
            raise OSError(28, "No space left on device")
        touch(path, *arguments, **options)

    monkeypatch.setattr(mlflow_service, "_open_mirror", lambda *_: FakeMirror(uncopied=1))
    monkeypatch.setattr(mlflow_service, "_Server", FakeServer)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", fail_touch)
        supervise_mlflow(MlflowSettings(folder=tmp_path, keep="s3://b/m"))
    with pytest.raises(ClusterError, match="the last changes of MLflow's database are not kept yet"):
        end_mlflow(tmp_path)
    # The next supervisor copies them.
    monkeypatch.setattr(mlflow_service, "_open_mirror", lambda *_: FakeMirror())
    supervise_mlflow(MlflowSettings(folder=tmp_path, keep="s3://b/m"))
    end_mlflow(tmp_path)


#: Locks the folder as a supervisor does until SIGTERM; its last copy fails.
SUPERVISOR = """
import os, signal, sys
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
lock = FileLock(folder / "service.lock")
lock.acquire()
(folder / "service.pid").write_text(str(os.getpid()))
print(flush=True)
signal.sigwait([signal.SIGTERM])
(folder / "not_kept").touch()
"""


def test_an_incomplete_last_copy_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    argv = [sys.executable, "-c", block + SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        supervisor.stdout.readline()
        assert mlflow_command(tmp_path) == argv
        assert main(["mlflow", "--end", "--folder", str(tmp_path)]) == 1
    assert "the last changes of MLflow's database are not kept yet" in capsys.readouterr().err
    assert mlflow_command(tmp_path) == []
    # The end of the process does not change that.
    assert main(["mlflow", "--end", "--folder", str(tmp_path)]) == 1


def test_a_supervisor_that_just_ended_has_no_command(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    with FileLock(tmp_path / "service.lock"):
        (tmp_path / "service.pid").write_text(f"{ended.pid}\n")
        assert mlflow_command(tmp_path) == []


def test_a_process_that_reused_the_supervisors_pid_is_not_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "service.lock").touch()
        (tmp_path / "service.pid").write_text(f"{other.pid}\n")
        assert main(["mlflow", "--end", "--folder", str(tmp_path)]) == 0
        assert "MLflow is not kept running" in capsys.readouterr().out
        assert other.poll() is None
        other.communicate(b"\n")
        assert other.returncode == 0
