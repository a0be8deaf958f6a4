"""Reading a cluster file: its values and aliases, within bounds, and files that describe no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.broken_files import Broken, told
from tune_rescon.clusters import check_file, read_cluster_file
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


def test_a_cloud_cluster_file_is_read(file: Path) -> None:
    file.write_text(AWS)
    read = read_cluster_file(file)
    assert (read.name, read.provider, read.region, read.workers) == ("c", "aws", "us-west-2", 3)
    assert (read.ssh_user, read.ssh_key, read.ssh_proxy_command) == ("ubuntu", None, "ssh -W %h:%p b")


@pytest.mark.parametrize(("more", "workers"), [("", 2), ("min_workers: 1\n", 1), ("min_workers: 0\n", 0)])
def test_workers_of_a_host_list_are_counted(file: Path, more: str, workers: int) -> None:
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
def test_an_invalid_cluster_file_is_reported_in_one_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ClusterFileError) as caught:
        read_cluster_file(file)
    assert str(caught.value).startswith(said.replace("FILE", str(file)))
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=r"FILE: must be a cluster's file, but got .*No such file"):
        read_cluster_file(tmp_path / "nope.yaml")
    with pytest.raises(ClusterFileError, match="Is a directory"):
        read_cluster_file(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClusterFileError, match="it is no text"):
        read_cluster_file(tmp_path / "b")


def aliases(levels: int) -> str:
    """Nested lists of ten aliases each, which stand for ten to the power of ``levels`` values."""
    lines = [
        "a0: &a0 [x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels + 1)),
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (aliases(30), "a cluster's file must have at most 50000 values, its aliases expanded, but got"),
        ("a: &a [1, *a]\n", "the anchor `&a` must not contain itself, but got an alias `*a` within it."),
        ("a: &a {b: {c: *a}}\n", "the anchor `&a` must not contain itself"),
        ("a: " + "[" * 500 + "]" * 500, "is not YAML: "),
        ("a: 2026-13-01\n", "is not YAML: a value cannot be read: month must be in 1..12"),
        ("a: [!!int many]\n", "is not YAML: a value cannot be read: "),
        ("a: !!bool maybe\n", "is not YAML: a value cannot be read: "),
        (f"a: {'9' * 5000}\n", "is not YAML: a value cannot be read: "),
    ],
)
def test_unreadable_yaml_is_a_finding_and_an_error(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    (finding,) = check_file(path)
    assert (finding.rule, finding.severity) == ("yaml", "error")
    assert words in finding.text
    with pytest.raises(ClusterFileError, match=r"x\.yaml:"):
        read_cluster_file(path)


def test_aliases_of_an_ordinary_size_are_expanded(broken: Broken) -> None:
    found = broken("cluster.yaml", "cluster_name: tune-rescon", f"cluster_name: x\n{aliases(3)}")
    assert not told(found, "yaml", "error", "")
