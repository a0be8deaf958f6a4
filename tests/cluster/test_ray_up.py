"""cluster.yaml with plain `ray up` from a new home directory: without a token, ~/.ray or our commands."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.lab.cloud import Cloud, tags
from tests.cluster.lab.hosts import Host
from tests.cluster.lab.operator import PhaseTimer, open_ports_that_answer, run_command, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(300)]

RAY = "ray.scripts.scripts"


def worker(cloud: Cloud) -> Host:
    (instance,) = [one for one in cloud.running() if tags(one).get("ray-node-type") == "worker"]
    return cloud.hosts[instance["InstanceId"]]


def test_ray_up_works_from_a_fresh_home(cloud: Cloud, file: Path, timer: PhaseTimer) -> None:
    assert not (Path.home() / ".ray").exists()
    started_at = time.monotonic()
    run_command(RAY, "up", "--yes", file)
    timer.record("`ray up`: to the head", started_at)
    assert cloud.head().run("pgrep -x gcs_server").stdout
    assert not (Path.home() / ".ray" / "auth_token").exists(), "the token stays on the cluster"


def test_the_head_creates_a_token_that_the_jobs_api_requires(cloud: Cloud) -> None:
    assert cloud.head().run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    curl = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert cloud.head().run(curl).stdout == "401"
    assert cloud.head().run(f'{curl} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"').stdout == "200"


def test_a_worker_joins_with_the_heads_token(cloud: Cloud, timer: PhaseTimer) -> None:
    started_at = time.monotonic()
    alive = "ray status 2>/dev/null | grep -c '^ [0-9]* a10g$' || true"
    wait_for("a worker", lambda: cloud.head().run(alive).stdout.strip() == "1", 150, pause=2)
    timer.record("`ray up`: and to a worker that joined", started_at)
    token = "cat ~/.ray/auth_token"
    assert worker(cloud).run(token).stdout == cloud.head().run(token).stdout != ""
    assert worker(cloud).run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_no_open_port_of_a_node_answers_without_the_token(cloud: Cloud) -> None:
    for host in (cloud.head(), worker(cloud)):
        assert open_ports_that_answer(host) == []


def test_ray_exec_and_ray_down_need_no_local_token(cloud: Cloud, file: Path) -> None:
    output = run_command(RAY, "exec", file, "cat ~/.ray/auth_token")
    assert cloud.head().run("cat ~/.ray/auth_token").stdout.strip() in output
    run_command(RAY, "down", "--yes", file)
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}
