"""A real `mlflow server` on loopback, in processes of its own: killed, frozen, started again at will."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from pathlib import Path

__all__ = ["MlflowServer"]

#: Seconds a server is given to answer; on a busy machine it takes twenty.
TIMEOUT = 90.0


class MlflowServer:
    """One address and one SQLite store; the processes behind them come and go."""

    def __init__(self, folder: Path) -> None:
        """``folder`` holds the store, ``mlflow.db``, which is made if it is missing, and its artifacts."""
        # Held as long as this object is, so that no other program is given the port while no server runs.
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        weakref.finalize(self, held.close)
        self._port = held.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it, with more ``options`` of the command, and ``wait`` until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}", *options]
        self._process = subprocess.Popen(
            command,
            # Its job runners are a dozen processes more, and no use here.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + TIMEOUT
        while wait and not self.answers():
            assert self._process.poll() is None, f"the server ended with code {self._process.returncode}"
            assert time.monotonic() < end, f"the server does not answer after {TIMEOUT:g} s"
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it takes requests."""
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True

    def freeze(self) -> None:
        """SIGSTOP: it takes connections, and answers none."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, to all its processes; nothing where none runs."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it was never started"
        os.killpg(self._process.pid, number)
