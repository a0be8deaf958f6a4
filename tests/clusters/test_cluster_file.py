"""Reading a cluster file, and the errors for files that describe no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.clusters import read_cluster_file
from tune_rescon.errors import ClusterFileError

AWS = """
cluster_name: c
provider: {type: aws, region: us-west-2}
auth: {ssh_user: ubuntu, ssh_proxy_command: "ssh -W %h:%p b"}
available_node_types:
  head: {node_config: {}}
  small: {min_workers: 2, node_config: {}}
  large: {min_workers: 1, node_config: {}}
"""
LOCAL = """
cluster_name: l
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: root, ssh_private_key: ~/.ssh/id}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def test_a_clouds(file: Path) -> None:
    file.write_text(AWS)
    read = read_cluster_file(file)
    assert (read.name, read.provider, read.region, read.workers) == ("c", "aws", "us-west-2", 3)
    assert (read.ssh_user, read.ssh_key, read.ssh_proxy_command) == ("ubuntu", None, "ssh -W %h:%p b")


@pytest.mark.parametrize(("more", "workers"), [("", 2), ("min_workers: 1\n", 1), ("min_workers: 0\n", 0)])
def test_a_list_of_hosts(file: Path, more: str, workers: int) -> None:
    file.write_text(LOCAL + more)
    assert read_cluster_file(file).workers == workers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "FILE:1: is not YAML: "),
        ("a: 1\n\tb: 2", "FILE:2: is not YAML: "),
        ("", "FILE: must be a mapping with `cluster_name` and `provider`, but got nothing."),
        ("- a", "FILE: must be a mapping with `cluster_name` and `provider`, but got ['a']."),
        ("cluster_name: c", "FILE: provider: must be a mapping with a `type`, but got nothing."),
        ("provider: {type: awz}", "FILE: provider.type: unknown provider 'awz' (did you mean 'aws'?)"),
        ("provider: {type: [aws]}", "FILE: provider.type: unknown provider ['aws']"),
        ("provider: {type: aws}\nauth: root", "FILE: auth: must be a mapping, but got 'root'."),
        ("provider: {type: local}\nmin_workers: two", "FILE: min_workers: must be a whole number, 0 or more"),
        ("provider: {type: aws}\navailable_node_types: {a: 3}", "FILE: available_node_types.a: must be a"),
    ],
)
def test_a_file_that_is_no_cluster_file_is_reported_in_one_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ClusterFileError) as caught:
        read_cluster_file(file)
    assert str(caught.value).startswith(said.replace("FILE", str(file)))
    assert "\n" not in str(caught.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=r"FILE: must be a cluster's file, but got .*No such file"):
        read_cluster_file(tmp_path / "nope.yaml")
    with pytest.raises(ClusterFileError, match="Is a directory"):
        read_cluster_file(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClusterFileError, match="it is no text"):
        read_cluster_file(tmp_path / "b")
