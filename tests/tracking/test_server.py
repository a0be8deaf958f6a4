"""A real `mlflow server`, late, killed, frozen and shy: what it shows in the end is complete, and once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest

from tune_rescon.tracking import Destination, MlflowWriter, RunView, SearchView, writer

pytestmark = pytest.mark.server

TRIALS, EPOCHS = 6, 5


class Server:
    """One address and one database; the process behind them comes and goes."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, wait: bool = True) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), *options]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while wait and not self._answers():
            assert self._process.poll() is None
            time.sleep(0.1)

    def strike(self, blow: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, blow)
        if blow is signal.SIGKILL:
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.strike(signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def assert_complete(self) -> None:
        """One parent, every trial once, every epoch once."""
        client = mlflow.MlflowClient(self.url)
        ids = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(ids)
        assert len(runs) == TRIALS + 1
        assert {run.info.status for run in runs} == {"FINISHED"}
        children = [run for run in runs if "tune_rescon.trial" in run.data.tags]
        assert sorted(int(run.data.tags["tune_rescon.trial"]) for run in children) == list(range(TRIALS))
        for run in children:
            history = client.get_metric_history(run.info.run_id, "val_accuracy")
            assert sorted(point.step for point in history) == list(range(1, EPOCHS + 1))


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[Server]:
    made = Server(tmp_path, empty_store)
    yield made
    made.stop()


@pytest.fixture
def sender(server: Server, monkeypatch: pytest.MonkeyPatch) -> MlflowWriter:
    """As a search has it, but it tries again sooner."""
    monkeypatch.setattr(writer, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(writer, "LONGEST_PAUSE", 0.5)
    monkeypatch.setattr(writer, "SETTLE", 0.05)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    made = MlflowWriter(
        Destination(uri=server.url, experiment="digits", search="s", metric="val_accuracy", maximize=True)
    )
    made.start()
    return made


def play(sender: MlflowWriter, halfway: Callable[[], None]) -> float:
    """A search's views, and what happens to the server half way; the seconds its longest call took."""
    slowest = 0.0

    def show(view: RunView | SearchView) -> None:
        nonlocal slowest
        began = time.perf_counter()
        sender.show(view)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.02)

    show(SearchView())
    for number in range(TRIALS):
        for epochs in range(EPOCHS + 1):
            show(trial(number, epochs))
            if (number, epochs) == (TRIALS // 2, EPOCHS // 2):
                halfway()
        show(trial(number, EPOCHS, "finished"))
    show(SearchView(state="finished"))
    return slowest


def trial(number: int, epochs: int, state: str = "running") -> RunView:
    values = tuple(epoch / 10 for epoch in range(1, epochs + 1))
    return RunView(
        number=number,
        state=state,
        params={"depth": "56"},
        history={"val_accuracy": values} if epochs else {},
        times_ms=tuple(1000 * epoch for epoch in range(1, epochs + 1)),
        started_ms=0,
        ended_ms=9000,
    )


def test_one_that_comes_up_late_gets_it_all(server: Server, sender: MlflowWriter) -> None:
    assert play(sender, lambda: None) < 0.05
    assert sender.waiting == 2 + TRIALS * (EPOCHS + 2)
    server.start()
    assert sender.close(60) == 0
    server.assert_complete()


def test_one_that_is_killed_amid_the_search_gets_it_all(server: Server, sender: MlflowWriter) -> None:
    server.start()

    def halfway() -> None:
        time.sleep(0.5)  # Some of it has been sent, some is under way.
        server.strike(signal.SIGKILL)

    assert play(sender, halfway) < 0.05
    assert sender.waiting > 0
    server.start()
    assert sender.close(60) == 0
    server.assert_complete()


def test_one_that_hangs_for_a_while_gets_it_all(server: Server, sender: MlflowWriter) -> None:
    server.start()
    assert play(sender, lambda: server.strike(signal.SIGSTOP)) < 0.05
    time.sleep(3)
    assert sender.trouble
    server.strike(signal.SIGCONT)
    assert sender.close(60) == 0
    assert sender.trouble == ""
    server.assert_complete()


def test_one_that_does_not_know_this_host_gets_it_all_once_it_does(
    server: Server, sender: MlflowWriter
) -> None:
    server.start("--allowed-hosts", "elsewhere.example", wait=False)
    play(sender, lambda: None)
    for _ in range(600):
        if "403" in sender.trouble:
            break
        time.sleep(0.1)
    assert "403" in sender.trouble
    server.strike(signal.SIGKILL)
    server.start()
    assert sender.close(60) == 0
    server.assert_complete()
