"""`tunnel` with a simulated ssh that opens its ports or fails."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.conftest import NO_HEAD, FakeRay
from tests.waiting import reserved_port
from tune_rescon.cluster import main
from tune_rescon.clusters.commands import Completed

#: Listens on the ports of its -L options, and writes its process id to a file.
SSH = f"""#!{sys.executable} -SE
import os, socket, sys, time
with open(os.path.join(os.path.dirname(__file__), "pid"), "w") as file:
    print(os.getpid(), file=file)
if os.environ["SSH_BEHAVIOR"] == "fails":
    sys.exit("Permission denied (publickey).")
ports = [int(sys.argv[n + 1].split(":")[1]) for n, word in enumerate(sys.argv) if word == "-L"]
held = [socket.create_server(("127.0.0.1", port)) for port in ports]
time.sleep(1 if os.environ["SSH_BEHAVIOR"] == "ends" else 60)
"""


@pytest.fixture
def ports() -> Iterator[tuple[str, str]]:
    """Free ports for MLflow and for the dashboard."""
    with reserved_port() as mlflow, reserved_port() as dashboard:
        yield str(mlflow), str(dashboard)


@pytest.fixture
def ssh(fake_ray: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fake_ray.answers = {"get-head-ip": [Completed(code=0, output="10.0.0.1\n")]}
    (tmp_path / "bin").mkdir()
    path = tmp_path / "bin" / "ssh"
    path.write_text(SSH)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_BEHAVIOR", "holds")
    return path


def arguments(file: Path, ports: tuple[str, str]) -> list[str]:
    mlflow, dashboard = ports
    return ["tunnel", str(file), "--mlflow-port", mlflow, "--dashboard-port", dashboard]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.timeout(20)  # starts a process
def test_both_addresses_are_shown_and_the_tunnel_ends_cleanly(
    number: signal.Signals, ssh: Path, file: Path, ports: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []

    def record_and_interrupt(text: str) -> None:
        messages.append(text)
        threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

    monkeypatch.setattr("click.echo", record_and_interrupt)
    argv = arguments(file, ports)
    assert main(argv) == 0
    addresses = f"MLflow:    http://127.0.0.1:{argv[3]}\nDashboard: http://127.0.0.1:{argv[5]}\n"
    token = f"It asks for the token: ray exec {file} 'cat ~/.ray/auth_token'\n"
    assert messages == [f"{addresses}{token}Ctrl-C ends it."]
    with pytest.raises(ProcessLookupError):
        os.kill(int((ssh.parent / "pid").read_text()), 0)


@pytest.mark.parametrize(("behavior", "code"), [("fails", 1), ("ends", 0)])
@pytest.mark.timeout(20)  # starts a process
def test_an_ssh_that_ends_is_a_failure(
    behavior: str,
    code: int,
    ssh: Path,
    file: Path,
    ports: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ssh.is_file()
    monkeypatch.setenv("SSH_BEHAVIOR", behavior)
    assert main(arguments(file, ports)) == 1
    assert f"The command failed: ssh ended with code {code}; see above." in capsys.readouterr().err


def test_a_port_in_use_is_reported(
    fake_ray: FakeRay, file: Path, ports: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["tunnel", str(file), "--dashboard-port", str(port), "--mlflow-port", ports[0]]) == 2
    stderr = capsys.readouterr().err
    assert f"--dashboard-port: must be a port that is free here, but got {port} (" in stderr
    assert main(["tunnel", str(file), "--mlflow-port", "8265"]) == 2
    assert fake_ray.commands == []


def test_a_tunnel_without_a_running_head_fails(
    fake_ray: FakeRay, file: Path, ports: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"get-head-ip": [NO_HEAD]}
    assert main(arguments(file, ports)) == 1
    assert "lab has no head that runs: start it by `up`." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ("{ssh_private_key: k}", "auth.ssh_user: must name a user."),
        ("{ssh_user: u, ssh_proxy_use_node_id: true}", "Use: ray attach -p 5000 -p 8265"),
    ],
)
def test_a_file_without_usable_ssh_settings_is_refused(
    auth: str,
    message: str,
    fake_ray: FakeRay,
    file: Path,
    ports: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file.write_text(f"cluster_name: c\nprovider: {{type: aws}}\nauth: {auth}\n")
    assert main(arguments(file, ports)) == 2
    assert message in capsys.readouterr().err
    assert fake_ray.commands == []
