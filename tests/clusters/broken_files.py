"""Assertions on the findings of `check` about modified copies of the shipped cluster files."""

from __future__ import annotations

from collections.abc import Callable

from tune_rescon.clusters import Finding

SHIPPED = [
    "cluster.yaml",
    "cluster/gcp.yaml",
    "cluster/kuberay.yaml",
    "cluster/local.yaml",
    "cluster/sky.yaml",
    "cluster/slurm.sh",
]

#: Replaces a text of a shipped file by another one, and checks the result.
CheckBroken = Callable[[str, str, str], list[Finding]]


def has_finding(found: list[Finding], rule: str, severity: str, text: str) -> bool:
    """Whether ``found`` has a finding of this rule and severity that contains ``text``."""
    return any(f.rule == rule and f.severity == severity and text in f.text for f in found)


def assert_error(found: list[Finding], rule: str, text: str) -> None:
    """Assert that the file has an error of this rule that contains ``text``."""
    assert has_finding(found, rule, "error", text), found


def assert_only_warning(found: list[Finding], rule: str, text: str) -> None:
    """Assert that the file has a warning of this rule that contains ``text``, and no error."""
    assert has_finding(found, rule, "warning", text), found
    assert not [finding for finding in found if finding.severity == "error"]
