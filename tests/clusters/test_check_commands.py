"""Findings of `check` about unsafe commands, credentials and costs in a modified shipped cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.broken_files import CheckBroken, assert_error, assert_only_warning, has_finding
from tune_rescon.clusters import check_file

#: The file, a text and its replacement (at its first occurrence), the rule, and a part of the finding.
ERRORS: list[tuple[str, str, str, str, str]] = [
    # Commands that a regular expression would accept as safe.
    (
        "cluster.yaml",
        "RAY_AUTH_MODE=token ray start --head",
        "RAY_AUTH_MODE=token true; ray start --head",
        "auth-mode",
        "head_start_ray_commands[1]: every `ray start` must have",
    ),
    (
        "cluster.yaml",
        "RAY_AUTH_MODE=token ray start --head",
        "export X=RAY_AUTH_MODE=token; ray start --head",
        "auth-mode",
        "head_start_ray_commands[1]: every `ray start` must have",
    ),
    (
        "cluster.yaml",
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=127.0.0.1 --dashboard-host=0.0.0.0",
        "dashboard",
        "but got 0.0.0.0.",
    ),
    (
        "cluster.yaml",
        "ulimit -n 65536; ",
        "mlflow server --host 0.0.0.0 & ",
        "listens",
        "[1]: a server must listen on 127.0.0.1",
    ),
    (
        "cluster.yaml",
        "- ray stop",
        "- ray stop; xvfb 'RAY_AUTH_MODE=token",
        "shell",
        "head_start_ray_commands[0]: must be a command that a shell can read, but got no `'` that closes.",
    ),
    (
        "cluster.yaml",
        "- ray stop",
        '- ray stop; true "$(ray start --head)"',
        "auth-mode",
        "head_start_ray_commands[0]: every `ray start` must have",
    ),
    (
        "cluster.yaml",
        "setup_commands:",
        "setup_commands:\n  - ray start --head --dashboard-host=127.0.0.1",
        "auth-mode",
        "setup_commands[0]: every `ray start` must have",
    ),
    # A machine's credentials.
    (
        "cluster.yaml",
        "MetadataOptions: {HttpTokens: required}",
        "MetadataOptions: {HttpTokens: optional}",
        "metadata",
        "node_config.MetadataOptions: must be {HttpTokens: required}, but got {'HttpTokens': 'optional'}.",
    ),
    (
        "cluster.yaml",
        "      MetadataOptions: {HttpTokens: required}\n",
        "",
        "metadata",
        "available_node_types.head.node_config.MetadataOptions: must be {HttpTokens: required}, but got N",
    ),
]

WARNINGS: list[tuple[str, str, str, str, str]] = [
    (
        "cluster.yaml",
        "cache_stopped_nodes: false",
        "cache_stopped_nodes: true",
        "cost",
        "provider.cache_stopped_nodes: should be false, but got true. Ray stops machines instead of ending",
    ),
    ("cluster.yaml", "  cache_stopped_nodes: false\n", "", "cost", "but got nothing, which is true for Ray."),
    (
        "cluster.yaml",
        "InstanceType: m7i.large",
        "InstanceType: p5.48xlarge",
        "cost",
        "head.node_config: the head should be a machine without a GPU, but got p5.48xlarge. It is billed all",
    ),
    ("cluster/gcp.yaml", "e2-standard-2", "a3-highgpu-8g", "cost", "without a GPU, but got a3-highgpu-8g."),
    (
        "cluster.yaml",
        "idle_timeout_minutes: 10",
        "idle_timeout_minutes: 20160",
        "cost",
        "idle_timeout_minutes: should be at most 60 minutes, but got 20160. So long a worker",
    ),
    (
        "cluster.yaml",
        "min_workers: 0\n    max_workers: 8",
        "idle_timeout_s: 7200\n    min_workers: 0\n    max_workers: 8",
        "cost",
        "available_node_types.a10g.idle_timeout_s: should be at most 60 minutes, but got 120.",
    ),
    (
        "cluster.yaml",
        "export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=65536 ",
        "export ",
        "metrics",
        "head_start_ray_commands[1]: a `ray start` should have `RAY_enable_metrics_collection=0 AUTOSCALER_M",
    ),
    (
        "cluster.yaml",
        "export RAY_enable_metrics_collection=0;",
        "",
        "metrics",
        "worker_start_ray_commands[1]: a `ray start` should have `RAY_enable_metrics_collection=0` in its en",
    ),
    (
        "cluster.yaml",
        "  ~/.ray: ./cluster/token\n",
        "  ~/.ray/auth_token: ~/nowhere/auth_token\n",
        "auth-token",
        "names a file that is not there: plain `ray up` starts the head, and then fails, but got ~/nowhere/",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "rule", "text"), ERRORS)
def test_a_broken_rule_is_an_error(
    check_broken: CheckBroken, name: str, old: str, new: str, rule: str, text: str
) -> None:
    assert_error(check_broken(name, old, new), rule, text)


@pytest.mark.parametrize(("name", "old", "new", "rule", "text"), WARNINGS)
def test_a_questionable_choice_is_only_a_warning(
    check_broken: CheckBroken, name: str, old: str, new: str, rule: str, text: str
) -> None:
    assert_only_warning(check_broken(name, old, new), rule, text)


def test_script_exports_apply_to_later_lines_and_findings_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.sh"
    safe = "ray start --head --dashboard-host=127.0.0.1"
    path.write_text(f"#!/bin/bash\n# it's not\nexport RAY_AUTH_MODE=token \\\n  A=1\n{safe}\n")
    assert not has_finding(check_file(path), "auth-mode", "error", "")
    path.write_text(f"#!/bin/bash\ncat <<EOF\nexport RAY_AUTH_MODE=token\nEOF\nA=1 \\\n  {safe}\n")
    (finding,) = [finding for finding in check_file(path) if finding.rule == "auth-mode"]
    assert finding.line == 5
