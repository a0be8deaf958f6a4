"""cluster.yaml on a cloud of moto's: a cluster that nothing uses ends itself, and not while a job runs.

One story: each test continues where the one before it ended.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.lab.cloud import Cloud, client, tags
from tests.cluster.lab.cloud_file import one_worker_file
from tests.cluster.lab.hosts import Host
from tests.cluster.lab.operator import Clock, command, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(600)]

#: The hours without use, and the same in seconds.
HOURS = 0.01
IDLE = HOURS * 3600


@pytest.fixture(scope="module")
def file(cloud: Cloud) -> Path:
    del cloud
    return one_worker_file()


def head(cloud: Cloud) -> Host:
    (instance,) = [one for one in cloud.running() if tags(one)["ray-node-type"] == "head"]
    return cloud.machines[instance["InstanceId"]].host


def test_up_reports_that_the_cluster_ends_itself(cloud: Cloud, file: Path, clock: Clock) -> None:
    began = time.monotonic()
    said = command("tune_rescon.cluster", "up", file, "--yes", "--end-after-idle", str(HOURS))
    clock.note("up: to the head and its worker", began)
    assert f"ends itself after {HOURS:g} h without use" in said
    assert len(cloud.running()) == 2


def test_status_shows_the_idle_limit_and_a_job_keeps_the_cluster(cloud: Cloud, file: Path) -> None:
    machine = head(cloud)
    # A job that uses no worker; this returns at once.
    machine.run(f"ray job submit --address http://127.0.0.1:8265 --no-wait -- sleep {2 * IDLE:g}")
    submitted = time.monotonic()
    said = command("tune_rescon.cluster", "status", file)
    assert f"{HOURS:g} h without use" in said
    time.sleep(max(0.0, submitted + 2 * IDLE - 5 - time.monotonic()))
    assert len(cloud.running()) == 2, (machine.folder / "home" / "idle.log").read_text()


def test_idle_cluster_ends_the_worker_before_the_head(cloud: Cloud, clock: Clock) -> None:
    machine = head(cloud)
    began = time.monotonic()
    (worker,) = (one["InstanceId"] for one in cloud.running("a10g"))
    wait_for("end of the worker", lambda: not cloud.running("a10g"), 240)
    log = machine.folder / "home" / "idle.log"
    wait_for("end of the head", lambda: not cloud.running(), 240, log=log)
    clock.note(f"a job's last seconds: to no machine, {IDLE:g} s of them idle", began)
    lines = log.read_text()
    assert lines.index(f"{worker}: ended before the head") < lines.index("the head, i-")
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}


def test_mlflow_database_is_kept_in_the_bucket() -> None:
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
