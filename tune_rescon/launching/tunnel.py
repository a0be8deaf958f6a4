"""An ssh tunnel to what listens on the head's loopback only: MLflow and Ray's dashboard."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tune_rescon.errors import ClusterError, ClusterFileError, UserError, explain
from tune_rescon.launching.cluster_file import ClusterFile
from tune_rescon.launching.commands import DASHBOARD_PORT, MLFLOW_PORT, ssh_tunnel
from tune_rescon.launching.starting import find_head

__all__ = ["find_keys", "hold_tunnel"]

#: Seconds ssh has to open its ports.
PATIENCE: Final = 60.0


def hold_tunnel(cluster: ClusterFile, say: Callable[[str], None], *, mlflow: int, dashboard: int) -> None:
    """Open both ports of this machine and hold them until Ctrl-C or SIGTERM.

    Raises:
        ClusterError: there is no head, or ssh ended by itself.
        ClusterFileError: the file does not say how to reach it.
        UserError: a port is taken here.
    """
    if cluster.ssh_user is None:
        hint = "The tunnel is an ssh of its own."
        raise ClusterFileError(explain("must name a user", where=f"{cluster.path}: auth.ssh_user", hint=hint))
    if cluster.ssh_by_node_id:
        hint = f"Use: ray attach -p {MLFLOW_PORT} -p {DASHBOARD_PORT} {cluster.path}"
        rule = "a tunnel needs an address to go to"
        got = "ssh_proxy_use_node_id"
        raise ClusterFileError(explain(rule, got=got, where=f"{cluster.path}: auth", hint=hint))
    for flag, port in (("--mlflow-port", mlflow), ("--dashboard-port", dashboard)):
        _check_free(flag, port)
    head = find_head(cluster)
    if head is None:
        raise ClusterError(f"{cluster.name} has no head that runs: start it by `up`.")
    ports = {mlflow: MLFLOW_PORT, dashboard: DASHBOARD_PORT}
    with _sigterm_as_interrupt(), suppress(KeyboardInterrupt):
        _hold(cluster, head, ports, say)


def find_keys(cluster: ClusterFile, ssh_folder: Path) -> list[Path]:
    """The keys to try: the file's, or those Ray has made for its region; none leaves it to ssh."""
    if cluster.ssh_key is not None:
        return [Path(cluster.ssh_key).expanduser()]
    if cluster.region is None or not ssh_folder.is_dir():
        return []
    return [path for path in sorted(ssh_folder.glob("ray-autoscaler_*.pem")) if cluster.region in path.name]


def _hold(cluster: ClusterFile, head: str, ports: Mapping[int, int], say: Callable[[str], None]) -> None:
    command = ssh_tunnel(cluster, head, ports, find_keys(cluster, Path.home() / ".ssh"))
    try:
        # A group of its own: Ctrl-C is answered here.
        process = subprocess.Popen(
            command.argv, env={**os.environ, **command.env}, stdin=subprocess.DEVNULL, process_group=0
        )
    except OSError as error:
        raise ClusterError(f"ssh cannot be run: {error.strerror}.") from None
    try:
        _wait_until_open(process, list(ports))
        mlflow, dashboard = ports
        say(f"MLflow:    http://127.0.0.1:{mlflow}\nDashboard: http://127.0.0.1:{dashboard}\nCtrl-C ends it.")
        process.wait()
        raise _ended(process.returncode)
    finally:
        process.terminate()
        process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], ports: Sequence[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    for port in ports:
        while not _answers(port):
            if process.poll() is not None:
                raise _ended(process.returncode)
            if time.monotonic() > deadline:
                raise ClusterError(f"ssh did not open port {port} within {PATIENCE:g} s.")
            time.sleep(0.1)


def _ended(code: int) -> ClusterError:
    return ClusterError(f"ssh ended with code {code}; see above.")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _check_free(flag: str, port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        rule = "must be a port that is free here"
        raise UserError(explain(rule, got=f"{port} ({error.strerror})", where=flag)) from None


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
