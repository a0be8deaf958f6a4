"""The shipped cluster files with one part broken, and the findings about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tune_rescon.clusters import Finding

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    "cluster.yaml",
    "cluster/gcp.yaml",
    "cluster/kuberay.yaml",
    "cluster/local.yaml",
    "cluster/sky.yaml",
    "cluster/slurm.sh",
]

#: Checks a shipped file in which one text is replaced by another.
Broken = Callable[[str, str, str], list[Finding]]


def told(found: list[Finding], rule: str, severity: str, text: str) -> bool:
    """Whether there is such a finding."""
    return any(f.rule == rule and f.severity == severity and text in f.text for f in found)


def assert_error(found: list[Finding], rule: str, text: str) -> None:
    """Assert that the file has this error."""
    assert told(found, rule, "error", text), found


def assert_warning_alone(found: list[Finding], rule: str, text: str) -> None:
    """Assert that the file has this warning, and no error."""
    assert told(found, rule, "warning", text), found
    assert not [finding for finding in found if finding.severity == "error"]
