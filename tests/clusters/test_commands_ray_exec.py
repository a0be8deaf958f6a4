"""`ray exec` over a simulated ssh: the arguments arrive at the head's shell unchanged."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from tune_rescon.clusters import find_head, read_cluster_file
from tune_rescon.clusters.commands import ray_exec, run

#: Runs the arguments after the address in a shell, as sshd does.
SSH = f"""#!{sys.executable} -SE
import os, sys
words = iter(sys.argv[1:])
for word in words:
    if word in ("-o", "-i", "-L"):
        next(words)
    elif not word.startswith("-"):
        break
os.execvp("bash", ["bash", "-c", " ".join(words)])
"""


@pytest.fixture
def cluster(short_tmp: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (short_tmp / "bin").mkdir(exist_ok=True)
    ssh = short_tmp / "bin" / "ssh"
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    # Ray keeps the state of listed hosts and its cache in these directories.
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setenv("HOME", str(short_tmp))
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return file


def write_head_state(folder: Path, state: str) -> None:
    tags = {"ray-node-type": "head", "ray-node-status": "up-to-date"}
    nodes = {"10.0.0.1": {"tags": tags, "state": state}}
    nodes |= {f"10.0.0.{n}": {"tags": {"ray-node-type": "worker"}, "state": "terminated"} for n in (2, 3)}
    (folder / "ray").mkdir(exist_ok=True)
    (folder / "ray" / "cluster-lab.state").write_text(json.dumps(nodes))


@pytest.mark.ray
def test_ray_exec_passes_arguments_unchanged(cluster: Path, short_tmp: Path) -> None:
    cluster_file = read_cluster_file(cluster)
    write_head_state(short_tmp, "terminated")
    assert find_head(cluster_file) is None
    write_head_state(short_tmp, "running")
    assert find_head(cluster_file) == "10.0.0.1"

    arguments = ["it's", "$HOME", "`x`", '"q"', "a b", "é"]
    line = shlex.join(["printf", r"%s\n", *arguments])
    done = run(ray_exec(cluster_file, f'{line}; echo "$RAY_AUTH_MODE"'), capture=True)
    assert done.code == 0
    assert done.output.splitlines()[-len(arguments) - 1 :] == [*arguments, "token"]
    assert "printf" not in done.output

    failed = run(ray_exec(cluster_file, "echo why; exit 3"), capture=True)
    assert failed.code == 1
    assert "why" in failed.last_lines
