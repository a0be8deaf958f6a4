"""The shipped cluster files are valid: for `check`, for Ray, and for bash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.broken_files import ROOT, SHIPPED
from tune_rescon.clusters import check_file
from tune_rescon.clusters.cluster_file import read_documents, texts_in

pytestmark = pytest.mark.usefixtures("python_of_the_images")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_has_no_findings_but_its_placeholders(name: str) -> None:
    found = check_file(ROOT / name)
    assert [(finding.rule, finding.severity) for finding in found] == [("placeholder", "warning")]
    assert "CHANGE-bucket" in found[0].text


def test_marked_lines_match_the_placeholder_finding() -> None:
    marked = [line for line in (ROOT / "cluster.yaml").read_text().splitlines() if "# CHANGE" in line]
    assert len(marked) == 5
    (finding,) = check_file(ROOT / "cluster.yaml")
    assert "sg-CHANGE, CHANGE-head, CHANGE-worker, CHANGE-bucket." in finding.text
    assert f"{finding}".startswith(f"{finding.line}: warning: ")


#: What a user would put in the place of the names with CHANGE.
MINE = {
    "sg-CHANGE": "sg-0123456789abcdef0",
    "CHANGE-bucket": "my-bucket",
    "CHANGE-head": "192.0.2.1",
    "CHANGE-first": "192.0.2.2",
    "CHANGE-second": "192.0.2.3",
    "CHANGE": "mine",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_filled_in_shipped_file_has_no_findings(name: str, tmp_path: Path) -> None:
    """The whole file, with the docker section and the commands that the cluster tests leave out."""
    text = (ROOT / name).read_text()
    for old, new in MINE.items():
        text = re.sub(rf"{old}(?=[\w-]|\b)", new, text)
    path = tmp_path / Path(name).name
    path.write_text(text)
    assert check_file(path) == []


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster/gcp.yaml", "cluster/local.yaml"])
def test_bash_can_read_every_command_of_a_shipped_file(name: str) -> None:
    (document,), _ = read_documents((ROOT / name).read_text())
    commands = [
        text for steps, text in texts_in(document.value) if any(str(s).endswith("_commands") for s in steps)
    ]
    assert len(commands) >= 8
    for command in commands:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.timeout(60)  # it imports Ray
def test_ray_accepts_the_shipped_files() -> None:
    program = """
import sys
import yaml
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import prepare_config, validate_config

for path in sys.argv[1:]:
    with open(path) as file:
        config = prepare_config(yaml.safe_load(file))
    validate_config(config)
    assert config["head_start_ray_commands"][0] == "ray stop"
    docker = config["docker"]
    if docker:
        # The container that it starts on a GPU machine.
        mounts, home = config["file_mounts"], "/home/ray"
        image, name, options = docker["image"], docker["container_name"], docker["run_options"]
        words = docker_start_cmds("ubuntu", image, mounts, name, options, "c", home, "docker").split()
        assert "/tmp/ray_tmp_mount/c/~/.ray:/home/ray/.ray" in words
        assert words[words.index("--env") + 1] == "RAY_AUTH_MODE=token"
        assert words[-2:] == [image, "bash"]
        assert config["initialization_commands"]
"""
    files = [name for name in SHIPPED if name.endswith(("cluster.yaml", "gcp.yaml", "local.yaml"))]
    subprocess.run([sys.executable, "-c", program, *files], cwd=ROOT, check=True, capture_output=True)
