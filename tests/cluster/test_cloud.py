"""cluster.yaml on a simulated cloud: it scales up to two workers, loses one, and scales down to none.

The tests are one scenario: each continues where the previous one ended.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.cluster.lab.cloud import Cloud, client, tags
from tests.cluster.lab.hosts import KEY
from tests.cluster.lab.operator import (
    JobLog,
    PhaseTimer,
    cluster_status,
    open_ports_that_answer,
    run_command,
    start_command,
    submit_search,
    wait_for,
    write_cluster_file,
)

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(300)]

STORAGE = "s3://lab/tune_rescon"
EPOCHS = 18
TRIALS = 3

SEARCH = [
    *("--space", "digits", "--trials", str(TRIALS), "--set", "scheduler.type=none"),
    *("--set", f"fidelity.max={EPOCHS}", "--set", "dataset.limit=600", "--set", "initial=[]"),
]

#: Seconds after which an idle worker is terminated; the shipped file has ten minutes.
IDLE = 20


def adapt_to_lab(cluster: dict[str, Any]) -> None:
    """Remove what the lab does not have: containers, public addresses, and machines with eight cores."""
    del cluster["docker"], cluster["initialization_commands"]
    cluster["idle_timeout_minutes"] = IDLE / 60
    cluster["provider"]["use_internal_ips"] = True
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(KEY)}
    types = cluster["available_node_types"]
    for kind in types.values():
        kind["node_config"]["KeyName"] = "operator"
    types["a10g"]["resources"] = {"CPU": 1, "GPU": 0}
    types["a10g"]["max_workers"] = 2


@pytest.fixture(scope="module")
def group(cloud: Cloud) -> str:
    """The security group that the cluster file names."""
    del cloud
    (vpc,) = client("ec2").describe_vpcs()["Vpcs"]
    created = client("ec2").create_security_group(GroupName="mine", Description="mine", VpcId=vpc["VpcId"])
    return str(created["GroupId"])


@pytest.fixture(scope="module")
def file(group: str) -> Path:
    names = {
        "sg-CHANGE": group,
        "CHANGE-head": "tune-rescon-head",
        "CHANGE-worker": "tune-rescon-worker",
        "CHANGE-bucket": "lab",
    }
    return write_cluster_file("cluster.yaml", names, adapt_to_lab)


@pytest.fixture(scope="module")
def scenario() -> dict[str, Any]:
    """Values that later tests of the scenario need."""
    return {}


def test_up_starts_only_the_head(cloud: Cloud, file: Path, group: str, timer: PhaseTimer) -> None:
    before = {one["GroupId"] for one in client("ec2").describe_security_groups()["SecurityGroups"]}
    started_at = time.monotonic()
    run_command("tune_rescon.cluster", "up", file, "--yes")
    timer.record("up: to the head", started_at)
    (instance,) = cloud.instances()
    assert instance["InstanceType"] == "m7i.large"
    assert "InstanceLifecycle" not in instance, "the head is a spot instance"
    assert instance["IamInstanceProfile"]["Arn"].endswith("/tune-rescon-head")
    assert instance["ImageId"].startswith("resolve:ssm:")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert [one["GroupId"] for one in instance["SecurityGroups"]] == [group]
    assert tags(instance)["ray-cluster-name"] == "tune-rescon"
    after = {one["GroupId"] for one in client("ec2").describe_security_groups()["SecurityGroups"]}
    assert after == before, "Ray created a security group"
    rules = client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    assert rules == [], "Ray opened the group"


def test_a_second_up_does_not_restart_the_head(cloud: Cloud, file: Path) -> None:
    store = "pgrep -x gcs_server"
    before = cloud.head().run(store).stdout
    output = run_command("tune_rescon.cluster", "up", file, "--yes")
    assert "is brought up to date, and its jobs continue" in output
    assert cloud.head().run(store).stdout == before != ""


def test_mlflow_and_dashboard_listen_on_localhost_only(cloud: Cloud) -> None:
    """As the README's paragraph on security states."""
    sockets = cloud.head().run("ss -Hltnp").stdout.splitlines()
    open_to_others = {
        (line.split('(("')[1].split('"')[0])
        for line in sockets
        if not line.split()[3].startswith(("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:"))
    }
    assert not any("mlflow" in name or "uvicorn" in name for name in open_to_others), sockets
    local = [line for line in sockets if line.split()[3] in ("127.0.0.1:8265", "127.0.0.1:5000")]
    assert len(local) == 2, sockets


def test_no_open_port_answers_without_the_token(cloud: Cloud) -> None:
    """This includes Ray's metrics, which Ray serves without a token."""
    assert open_ports_that_answer(cloud.head()) == []


def test_jobs_api_requires_the_token(cloud: Cloud) -> None:
    curl = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert cloud.head().run(curl).stdout == "401"
    assert cloud.head().run(f'{curl} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"').stdout == "200"


def test_pending_trials_start_spot_workers(
    cloud: Cloud, file: Path, timer: PhaseTimer, scenario: dict[str, Any]
) -> None:
    started_at = time.monotonic()
    job = scenario["job"] = JobLog(cloud.head(), submit_search(file, "--name", "a", "--", *SEARCH))
    wait_for("two workers", lambda: len(cloud.running("a10g")) == 2, 120)
    workers = cloud.running("a10g")
    timer.record("submit: to two workers that boot", started_at)
    for worker in workers:
        assert worker["InstanceType"] == "g5.2xlarge"
        assert worker["InstanceLifecycle"] == "spot"
        assert worker["IamInstanceProfile"]["Arn"].endswith("/tune-rescon-worker")
    job.wait_for_text(" epoch 1/", 180)
    timer.record("submit: to the first epoch's report, from no worker", started_at)
    assert len(cloud.running()) == 3
    assert cloud.head().run("pgrep -fc '^ray::(run_trial|ImplicitFunc)' || true").stdout.strip() == "0"


def test_a_reclaimed_worker_costs_at_most_an_epoch(
    cloud: Cloud, timer: PhaseTimer, scenario: dict[str, Any]
) -> None:
    job: JobLog = scenario["job"]
    job.wait_for_epochs({(0, 2), (1, 2)}, 180)
    first = cloud.running("a10g")[0]["InstanceId"]
    before = {trial: max(e for t, e in job.epochs() if t == trial) for trial in (0, 1)}
    cut = time.monotonic()
    cloud.reclaim(first)
    job.wait_for_text("starts again after epoch", 120)
    line = next(line for line in job.text().splitlines() if "starts again after epoch" in line)
    trial, recorded = int(line[6:10]), int(line.split("after epoch ")[1].split(":")[0])
    assert recorded >= before[trial] - 1
    timer.record("reclaimed: to its trial handed out again", cut)
    job.wait_for_epochs({(trial, recorded + 1)}, 200)
    timer.record("reclaimed: to the trial's next epoch, elsewhere", cut)
    assert len(job.epochs()) == len(set(job.epochs()))


def test_every_trial_finishes_with_every_epoch(file: Path, scenario: dict[str, Any]) -> None:
    job: JobLog = scenario["job"]
    job.wait_for_text(f"{TRIALS} of {TRIALS} trials ended", 240)
    wait_for("end of the job", lambda: cluster_status(file)["jobs"][-1]["status"] == "SUCCEEDED", 90, pause=2)
    scenario["ended"] = time.monotonic()
    output = run_command("tune_rescon.report", "a", "--storage", STORAGE, "--json")
    found = json.loads(output[output.index("{") :])
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * TRIALS
    assert set(job.epochs()) == {(t, e) for t in range(TRIALS) for e in range(1, EPOCHS + 1)}


def test_mlflow_is_reachable_through_the_tunnel(file: Path) -> None:
    tunnel = start_command(
        "tune_rescon.cluster", "tunnel", file, "--mlflow-port", "5101", "--dashboard-port", "8365"
    )
    try:
        wait_for("MLflow", lambda: answers("http://127.0.0.1:5101/health"), 60)
        mlflow = MlflowClient("http://127.0.0.1:5101")
        (experiment,) = [one for one in mlflow.search_experiments() if one.name == "digits"]
        runs = mlflow.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert len(runs) == 1 + TRIALS
        (parent,) = [run for run in runs if run.info.run_name == "a"]
        assert {"report.html", "best.yaml"} <= {one.path for one in mlflow.list_artifacts(parent.info.run_id)}
        champion = mlflow.get_model_version_by_alias("a", "champion")
        assert champion.run_id in {run.info.run_id for run in runs}
    finally:
        tunnel.terminate()
        tunnel.wait(30)


def answers(url: str) -> bool:
    done = subprocess.run(["curl", "-s", "-f", url], capture_output=True, check=False)
    return done.returncode == 0


def test_idle_workers_are_terminated(cloud: Cloud, timer: PhaseTimer, scenario: dict[str, Any]) -> None:
    wait_for("end of the workers", lambda: not cloud.running("a10g"), 150, pause=1)
    timer.record(f"search ended: to no worker, of which {IDLE} s idle by the file", scenario["ended"])


def test_down_terminates_every_machine_and_keeps_the_bucket(
    cloud: Cloud, file: Path, timer: PhaseTimer
) -> None:
    started_at = time.monotonic()
    run_command("tune_rescon.cluster", "down", file)
    timer.record("down", started_at)
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
    assert "tune_rescon/a/best.yaml" in kept
