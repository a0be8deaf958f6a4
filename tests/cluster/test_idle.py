"""cluster.yaml on a simulated cloud: an idle cluster ends itself, but not while a job runs.

The tests are one scenario: each continues where the previous one ended.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.lab.cloud import Cloud, client
from tests.cluster.lab.operator import PhaseTimer, run_command, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(600)]

#: The idle limit in hours and in seconds.
HOURS = 0.01
IDLE = HOURS * 3600


def test_up_reports_that_the_cluster_ends_itself(cloud: Cloud, file: Path, timer: PhaseTimer) -> None:
    started_at = time.monotonic()
    output = run_command("tune_rescon.cluster", "up", file, "--yes", "--end-after-idle", str(HOURS))
    timer.record("up: to the head and its worker", started_at)
    assert f"ends itself after {HOURS:g} h without use" in output
    assert len(cloud.running()) == 2


def test_status_shows_the_idle_limit_and_a_job_keeps_the_cluster(cloud: Cloud, file: Path) -> None:
    machine = cloud.head()
    # The job uses no worker, and the command does not wait for it.
    machine.run(f"ray job submit --address http://127.0.0.1:8265 --no-wait -- sleep {2 * IDLE:g}")
    submit_search = time.monotonic()
    output = run_command("tune_rescon.cluster", "status", file)
    assert f"{HOURS:g} h without use" in output
    time.sleep(max(0.0, submit_search + 2 * IDLE - 5 - time.monotonic()))
    assert len(cloud.running()) == 2, (machine.folder / "home" / "idle.log").read_text()


def test_idle_cluster_ends_the_worker_before_the_head(cloud: Cloud, timer: PhaseTimer) -> None:
    machine = cloud.head()
    started_at = time.monotonic()
    (worker,) = (one["InstanceId"] for one in cloud.running("a10g"))
    wait_for("end of the worker", lambda: not cloud.running("a10g"), 240)
    log = machine.folder / "home" / "idle.log"
    wait_for("end of the head", lambda: not cloud.running(), 240, log=log)
    timer.record(f"a job's last seconds: to no machine, {IDLE:g} s of them idle", started_at)
    lines = log.read_text()
    assert lines.index(f"the workers {worker} are ended") < lines.index("the head, i-")
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}


def test_mlflow_database_is_kept_in_the_bucket() -> None:
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
