"""cluster.yaml by `ray up`, typed by a person who never ran Ray: no token, no ~/.ray, no wrapper of ours."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.lab.cloud import Cloud, tags
from tests.cluster.lab.cloud_file import one_worker_file
from tests.cluster.lab.hosts import Host
from tests.cluster.lab.operator import Clock, command, open_ports_that_answer, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(300)]

RAY = "ray.scripts.scripts"


@pytest.fixture(scope="module")
def file(cloud: Cloud) -> Path:
    del cloud
    return one_worker_file()


def machine(cloud: Cloud, kind: str) -> Host | None:
    """The machine that Ray calls ``kind`` ("head", "worker"), once it has booted."""
    for one in cloud.running():
        if tags(one).get("ray-node-type") == kind and one["InstanceId"] in cloud.machines:
            return cloud.machines[one["InstanceId"]].host
    return None


def head(cloud: Cloud) -> Host:
    found = machine(cloud, "head")
    assert found is not None
    return found


def test_ray_up_works_from_a_fresh_home(cloud: Cloud, file: Path, clock: Clock) -> None:
    assert not (Path.home() / ".ray").exists()
    began = time.monotonic()
    command(RAY, "up", "--yes", file)
    clock.note("`ray up`: to the head", began)
    assert head(cloud).run("pgrep -x gcs_server").stdout
    assert not (Path.home() / ".ray" / "auth_token").exists(), "the token stays on the cluster"


def test_the_head_creates_a_token_that_the_jobs_api_requires(cloud: Cloud) -> None:
    assert head(cloud).run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert head(cloud).run(ask).stdout == "401"
    assert head(cloud).run(f'{ask} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"').stdout == "200"


def test_a_worker_joins_with_the_heads_token(cloud: Cloud, clock: Clock) -> None:
    began = time.monotonic()
    alive = "ray status 2>/dev/null | grep -c '^ [0-9]* a10g$' || true"
    wait_for("a worker", lambda: head(cloud).run(alive).stdout.strip() == "1", 150, pause=2)
    clock.note("`ray up`: and to a worker that joined", began)
    worker = machine(cloud, "worker")
    assert worker is not None
    token = "cat ~/.ray/auth_token"
    assert worker.run(token).stdout == head(cloud).run(token).stdout != ""
    assert worker.run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_no_open_port_of_a_node_answers_without_the_token(cloud: Cloud) -> None:
    for kind in ("head", "worker"):
        host = machine(cloud, kind)
        assert host is not None
        assert open_ports_that_answer(host) == []


def test_ray_exec_and_ray_down_need_no_local_token(cloud: Cloud, file: Path) -> None:
    said = command(RAY, "exec", file, "cat ~/.ray/auth_token")
    assert head(cloud).run("cat ~/.ray/auth_token").stdout.strip() in said
    command(RAY, "down", "--yes", file)
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}
