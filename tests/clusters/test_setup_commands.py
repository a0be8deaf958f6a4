"""The setup commands of the shipped files, in a temporary home, with a pip that only counts its calls."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
FILES = ["cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml"]


class Node:
    """A home directory with the mounted requirements, and what was installed there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.source = home / "tune_rescon_source"
        self.source.mkdir()
        (home / ".ray").mkdir()  # mounted, without a token
        for name in ("pyproject.toml", "constraints.txt"):
            (self.source / name).write_text("first")
        tools = home / "tools"
        tools.mkdir()
        self.program(tools / "pip", 'echo "$@" >> ~/installed')
        self.program(tools / "python3.11", "mkdir -p $3/bin && cp ~/tools/pip $3/bin/")

    @staticmethod
    def program(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, command: str) -> str:
        environment = {"HOME": str(self.home), "PATH": f"{self.home}/tools:{os.environ['PATH']}"}
        command = f"touch ~/.bashrc; . ~/.bashrc; ( {command} )"
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def set_up(self, file: str) -> None:
        for command in YAML(typ="safe").load(ROOT / file)["setup_commands"]:
            self.run(command)

    def installed(self) -> list[str]:
        path = self.home / "installed"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_the_project_is_reinstalled_only_if_requirements_change(node: Node, file: str) -> None:
    node.set_up(file)
    (first,) = node.installed()
    assert first.startswith("install --quiet --constraint constraints.txt --editable .[cluster,")
    node.set_up(file)
    assert len(node.installed()) == 1
    (node.source / "constraints.txt").write_text("second")
    node.set_up(file)
    assert len(node.installed()) == 2


@pytest.mark.parametrize("file", FILES)
def test_a_failed_installation_is_retried(node: Node, file: str) -> None:
    pip = node.home / "tools" / "pip"
    sound = pip.read_text()
    node.program(pip, "exit 1")
    with pytest.raises(AssertionError):
        node.set_up(file)
    pip.write_text(sound)
    node.set_up(file)
    assert len(node.installed()) == 1


@pytest.mark.parametrize("file", FILES)
def test_every_shell_has_the_auth_mode_and_the_storage(node: Node, file: str) -> None:
    node.set_up(file)
    node.set_up(file)
    mode, storage = node.run('echo "$RAY_AUTH_MODE"; echo "$TUNE_RESCON_STORAGE"').split()
    assert mode == "token"
    assert storage.endswith("://CHANGE-bucket/tune_rescon")
    assert (node.home / ".bashrc").read_text().count("tune_rescon_env") == 1


@pytest.mark.parametrize("file", FILES)
def test_mlflow_keeps_its_database_in_the_bucket(node: Node, file: str) -> None:
    node.set_up(file)
    node.program(node.home / "tools" / "python", 'echo "$@"')
    starts = YAML(typ="safe").load(ROOT / file)["head_start_ray_commands"]
    (start,) = [line for line in starts if "tune_rescon.cluster mlflow" in line]
    node.run(start)
    scheme = "gs" if "gcp" in file else "s3"
    bucket = f"{scheme}://CHANGE-bucket/mlflow"
    wanted = f"-m tune_rescon.cluster mlflow --artifacts {bucket}/artifacts --keep {bucket}/database\n"
    log = node.home / "mlflow.log"
    # The command does not wait for what it starts.
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    assert log.read_text() == wanted


def test_an_aws_head_starts_the_idle_watch(node: Node) -> None:
    """Also in a new container, which gets the hours from the folder of the token."""
    node.set_up("cluster.yaml")
    node.program(node.home / "tools" / "python", 'echo "$@"')
    content = YAML(typ="safe").load(ROOT / "cluster.yaml")
    node.run(content["head_start_ray_commands"][-1])
    log = node.home / "idle.log"
    wait_until(lambda: log.exists() and log.read_text().endswith("\n"))
    assert log.read_text() == "-m tune_rescon.cluster end-when-idle\n"
    assert "~/.ray" in content["file_mounts"]


@pytest.mark.parametrize("file", FILES)
def test_the_head_creates_its_token_once_without_printing_it(node: Node, file: str) -> None:
    token = node.home / ".ray" / "auth_token"
    # As Ray's: it prints the token, and leaves one alone that is there.
    made = "test -s ~/.ray/auth_token || { echo made >> ~/made; echo secret > ~/.ray/auth_token; }"
    node.program(node.home / "tools" / "ray", f'test "$1" = get-auth-token && {made}; cat ~/.ray/auth_token')
    for _ in range(2):
        said = [node.run(command) for command in YAML(typ="safe").load(ROOT / file)["head_setup_commands"]]
        assert "".join(said) == ""
    assert (node.home / "made").read_text() == "made\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.fixture
def gpu_machine(node: Node) -> str:
    """gcp.yaml's command that waits for the driver, on a machine with NVIDIA's card."""
    vendor = node.home / "devices" / "0000:00:04.0" / "vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("0x10de\n")
    node.program(node.home / "tools" / "sleep", "echo $1 >> ~/slept")
    (command,) = [
        command
        for command in YAML(typ="safe").load(ROOT / "cluster/gcp.yaml")["initialization_commands"]
        if "nvidia-smi" in command
    ]
    assert "/sys/bus/pci/devices" in command
    return str(command).replace("/sys/bus/pci/devices", f"{node.home}/devices")


def slept(node: Node) -> int:
    path = node.home / "slept"
    return len(path.read_text().split()) if path.exists() else 0


def test_a_machine_with_a_gpu_waits_for_its_driver(node: Node, gpu_machine: str) -> None:
    node.program(node.home / "tools" / "nvidia-smi", "test $(wc -l < ~/slept || echo 0) -ge 3")
    node.run(gpu_machine)
    assert slept(node) == 3


def test_a_missing_driver_is_an_error_after_ten_minutes(node: Node, gpu_machine: str) -> None:
    node.program(node.home / "tools" / "nvidia-smi", "exit 9")
    with pytest.raises(AssertionError, match="NVIDIA's driver did not answer within 10 minutes"):
        node.run(gpu_machine)
    assert slept(node) == 60
    assert set((node.home / "slept").read_text().split()) == {"10"}


def test_a_machine_without_a_gpu_does_not_wait(node: Node, gpu_machine: str) -> None:
    (node.home / "devices" / "0000:00:04.0" / "vendor").write_text("0x8086\n")
    node.run(gpu_machine)
    assert slept(node) == 0
