"""Values and aliases in a cluster file: read, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.broken_files import Broken, told
from tune_rescon.clusters import check_file, read_cluster_file
from tune_rescon.errors import ClusterFileError


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
def test_what_cannot_be_read_is_a_finding_at_once(tmp_path: Path, text: str, words: str) -> None:
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
