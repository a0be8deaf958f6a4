"""Command lines for this machine and for the head, and how commands are run."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until
from tune_rescon.clusters.cluster import find_keys
from tune_rescon.clusters.cluster_file import ClusterFile
from tune_rescon.clusters.commands import (
    END_MLFLOW,
    INSPECT,
    Command,
    Completed,
    follow_command,
    ray_down,
    ray_exec,
    ray_get_auth_token,
    ray_get_head_ip,
    ray_up,
    run,
    ssh_tunnel,
    stop_command,
    submission_id,
    submit_command,
)
from tune_rescon.errors import ClusterError, ClusterFileError, ConfigError
from tune_rescon.search import search

AWS = ClusterFile(
    path=Path("c.yaml"), name="c", provider="aws", workers=0, region="us-west-2", ssh_user="ubuntu"
)
LOCAL = replace(AWS, provider="local", region=None, ssh_key="~/.ssh/id", ssh_user="root")

JOBS = "--address http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (ray_up(AWS, restart=True), "up --log-style pretty -y --no-config-cache c.yaml"),
        (ray_up(AWS, restart=False), "up --log-style pretty -y --no-config-cache --no-restart c.yaml"),
        (ray_down(AWS), "down --log-style pretty -y c.yaml"),
        (ray_get_head_ip(AWS), "get-head-ip c.yaml"),
        (ray_get_auth_token(AWS), "get-auth-token --generate"),
        (
            ray_exec(AWS, "ray status"),
            "exec --log-style pretty c.yaml 'export RAY_AUTH_MODE=token; ray status'",
        ),
    ],
)
def test_ray_command_lines_match(command: Command, expected: str) -> None:
    assert command.argv[:4] == (sys.executable, "-P", "-m", "ray.scripts.scripts")
    assert shlex.join(command.argv[4:]) == expected
    assert command.env == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("command", [ray_up(LOCAL, restart=True), ray_exec(LOCAL, "w"), ray_down(LOCAL)])
def test_a_host_list_uses_autoscaler_v1(command: Command) -> None:
    assert command.env == {"RAY_AUTH_MODE": "token", "RAY_UP_enable_autoscaler_v2": "0"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (follow_command("j-1"), f"ray job logs {JOBS} --follow j-1"),
        (stop_command("j-1"), f"ray job stop {JOBS} j-1"),
        (INSPECT, "python -m tune_rescon.cluster inspect --json"),
        (END_MLFLOW, "python -m tune_rescon.cluster mlflow --end"),
    ],
)
def test_command_lines_for_the_head_match(line: str, expected: str) -> None:
    assert line == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--space", "digits"], {"space_name": "digits", "name": None, "resume": None}),
        (["--name", "a", "--space", "digits"], {"name": "a", "resume": None}),
        # The user's options take precedence over the defaults.
        (["--tracking-uri", "http://m"], {"tracking_uri": "http://m", "address": "auto"}),
        (["--space", "it's $HOME `x`"], {"space_name": "it's $HOME `x`"}),
        (["--set", "a=[1, 2]", "--set", "b=x y"], {"settings": ("a=[1, 2]", "b=x y")}),
    ],
)
def test_the_arguments_of_a_search_arrive_unchanged(
    arguments: list[str], expected: dict[str, object]
) -> None:
    argv = shlex.split(submit_command("j-1", "tune_rescon.search", arguments))
    submit_argv, search_argv = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert shlex.join(submit_argv) == f"ray job submit {JOBS} --submission-id j-1 --no-wait"
    assert search_argv[:3] == ["python", "-m", "tune_rescon.search"]
    params = search.make_context("search", search_argv[3:]).params
    assert params["plain"]
    assert {key: params[key] for key in expected} == expected
    if "tracking_uri" not in expected:
        assert params["tracking_uri"] == "http://127.0.0.1:5000"


def test_a_password_is_not_put_on_a_jobs_command_line() -> None:
    with pytest.raises(ClusterFileError, match="must hold no password") as caught:
        submit_command("j-1", "tune_rescon.search", ["--study", "postgresql://ann:s3cret@db/x"])
    assert "s3cret" not in str(caught.value)
    assert "TUNE_RESCON_STUDY" in str(caught.value)
    with pytest.raises(ClusterFileError, match="must hold no password") as caught:
        submit_command("j-1", "tune_rescon.search", ["--tracking-uri", "http://ann:s3cret@mlflow:5000"])
    # A job has a --tracking-uri, which counts before this variable.
    assert "TUNE_RESCON_TRACKING_URI" not in str(caught.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(caught.value)


def test_a_submission_id_contains_the_start_time() -> None:
    assert submission_id(None, datetime(2026, 1, 2, 3, 4, 5)) == "search-20260102-030405"


def test_a_tunnel_listens_on_localhost_and_never_prompts() -> None:
    cluster = replace(AWS, ssh_proxy_command="ssh -W %h:%p bastion")
    command = ssh_tunnel(cluster, "10.0.0.1", {5001: 5000, 8265: 8265}, [Path("/k")])
    command_line = shlex.join(command.argv)
    assert command_line.startswith("ssh -N -T -i /k -o ")
    assert command_line.endswith(
        "-L 127.0.0.1:5001:127.0.0.1:5000 -L 127.0.0.1:8265:127.0.0.1:8265 ubuntu@10.0.0.1"
    )
    for option in ("BatchMode=yes", "ExitOnForwardFailure=yes", "IdentitiesOnly=yes"):
        assert f"-o {option}" in command_line
    assert "ProxyCommand=ssh -W %h:%p bastion" in command.argv


def test_a_tunnel_without_a_key_uses_ssh_defaults() -> None:
    assert "IdentitiesOnly=yes" not in ssh_tunnel(AWS, "h", {1: 2}, []).argv


def test_ssh_keys_come_from_the_file_or_from_ray(tmp_path: Path) -> None:
    for name in ("ray-autoscaler_us-west-2.pem", "ray-autoscaler_1_eu-central-1.pem", "id"):
        (tmp_path / name).touch()
    assert find_keys(AWS, tmp_path) == [tmp_path / "ray-autoscaler_us-west-2.pem"]
    assert find_keys(replace(AWS, region="us-east-1"), tmp_path) == []
    assert find_keys(LOCAL, tmp_path) == [Path("~/.ssh/id").expanduser()]
    with pytest.raises(ConfigError, match=r"auth.ssh_private_key: must begin with a home directory that"):
        find_keys(replace(LOCAL, ssh_key="~no-such-user/id"), tmp_path)


def test_captured_output_has_no_carriage_returns() -> None:
    script = "import os, sys; print(os.environ['A'], end='\\r\\n'); sys.exit(3)"
    done = run(Command(argv=(sys.executable, "-c", script), env={"A": "x"}), capture=True)
    assert done == Completed(code=3, output="x\n")
    assert done.last_lines == "x"


def test_a_timeout_kills_the_commands_child_processes(tmp_path: Path) -> None:
    script = "sleep 99 & echo $! > pid; wait"
    command = Command(argv=("sh", "-c", f"cd {shlex.quote(str(tmp_path))}; {script}"))
    file = tmp_path / "pid"
    # On a busy machine the shell may not have written the file within the first limit.
    for seconds in (0.3, 3, 30):
        with pytest.raises(ClusterError, match=rf"did not end within {seconds} s"):
            run(command, capture=True, timeout=seconds)
        if file.exists() and file.read_text():
            break
    pid = int(file.read_text())
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_cannot_run_or_end_is_reported() -> None:
    with pytest.raises(ClusterError, match="`/no/such` cannot be run: No such file or directory"):
        run(Command(argv=("/no/such",)))
    with pytest.raises(ClusterError, match=r"`sleep 99` did not end within 0.1 s"):
        run(Command(argv=("sleep", "99")), timeout=0.1)
