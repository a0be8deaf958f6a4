"""cluster.yaml on a cloud of moto's: from no worker to two, one reclaimed, and back to none.

One story: each test continues where the one before it ended.
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
from tests.cluster.lab.hosts import KEY, Host
from tests.cluster.lab.operator import (
    Clock,
    JobLog,
    command,
    open_ports_that_answer,
    overlaid,
    start,
    status,
    submitted,
    wait_for,
)

pytestmark = [pytest.mark.hosts, pytest.mark.nightly, pytest.mark.timeout(300)]

STORAGE = "s3://lab/tune_rescon"
EPOCHS = 18
TRIALS = 3

SEARCH = [
    *("--space", "digits", "--trials", str(TRIALS), "--set", "scheduler.type=none"),
    *("--set", f"fidelity.max={EPOCHS}", "--set", "dataset.limit=600", "--set", "initial=[]"),
]

#: Seconds after which a worker with nothing to do goes; the shipped file has ten minutes.
IDLE = 20


def smaller(cluster: dict[str, Any]) -> None:
    """What a cloud on this machine cannot have: containers, public addresses, and machines of eight cores."""
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
    """The security group that is one's own."""
    del cloud
    (vpc,) = client("ec2").describe_vpcs()["Vpcs"]
    made = client("ec2").create_security_group(GroupName="mine", Description="mine", VpcId=vpc["VpcId"])
    return str(made["GroupId"])


@pytest.fixture(scope="module")
def file(group: str) -> Path:
    names = {
        "sg-CHANGE": group,
        "CHANGE-head": "tune-rescon-head",
        "CHANGE-worker": "tune-rescon-worker",
        "CHANGE-bucket": "lab",
    }
    return overlaid("cluster.yaml", names, smaller)


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    """What a later part must know of an earlier one."""
    return {}


def head(cloud: Cloud) -> Host:
    (instance,) = [one for one in cloud.running() if tags(one)["ray-node-type"] == "head"]
    return cloud.machines[instance["InstanceId"]].host


def test_up_starts_only_the_head(cloud: Cloud, file: Path, group: str, clock: Clock) -> None:
    before = {one["GroupId"] for one in client("ec2").describe_security_groups()["SecurityGroups"]}
    began = time.monotonic()
    command("tune_rescon.cluster", "up", file, "--yes")
    clock.note("up: to the head", began)
    (instance,) = cloud.instances()
    assert instance["InstanceType"] == "m7i.large"
    assert "InstanceLifecycle" not in instance, "the head is no spot machine"
    assert instance["IamInstanceProfile"]["Arn"].endswith("/tune-rescon-head")
    assert instance["ImageId"].startswith("resolve:ssm:")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert [one["GroupId"] for one in instance["SecurityGroups"]] == [group]
    assert tags(instance)["ray-cluster-name"] == "tune-rescon"
    after = {one["GroupId"] for one in client("ec2").describe_security_groups()["SecurityGroups"]}
    assert after == before, "Ray made a security group"
    rules = client("ec2").describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    assert rules == [], "Ray opened the group"


def test_a_second_up_does_not_restart_the_head(cloud: Cloud, file: Path) -> None:
    store = "pgrep -x gcs_server"
    before = head(cloud).run(store).stdout
    said = command("tune_rescon.cluster", "up", file, "--yes")
    assert "is brought up to date, and its jobs continue" in said
    assert head(cloud).run(store).stdout == before != ""


def test_mlflow_and_dashboard_listen_on_localhost_only(cloud: Cloud) -> None:
    """What is open to whom: the README's paragraph on security."""
    sockets = head(cloud).run("ss -Hltnp").stdout.splitlines()
    open_to_others = {
        (line.split('(("')[1].split('"')[0])
        for line in sockets
        if not line.split()[3].startswith(("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:"))
    }
    assert not any("mlflow" in name or "uvicorn" in name for name in open_to_others), sockets
    local = [line for line in sockets if line.split()[3] in ("127.0.0.1:8265", "127.0.0.1:5000")]
    assert len(local) == 2, sockets


def test_no_open_port_answers_without_the_token(cloud: Cloud) -> None:
    """Not even Ray's metrics, which have no token."""
    assert open_ports_that_answer(head(cloud)) == []


def test_jobs_api_requires_the_token(cloud: Cloud) -> None:
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert head(cloud).run(ask).stdout == "401"
    assert head(cloud).run(f'{ask} -H "Authorization: Bearer $(cat ~/.ray/auth_token)"').stdout == "200"


def test_pending_trials_start_spot_workers(
    cloud: Cloud, file: Path, clock: Clock, story: dict[str, Any]
) -> None:
    began = time.monotonic()
    job = story["job"] = JobLog(head(cloud), submitted(file, "--name", "a", "--", *SEARCH))
    workers = wait_for("two workers", lambda: both(cloud.running("a10g")), 120)
    clock.note("submit: to two workers that boot", began)
    for worker in workers:
        assert worker["InstanceType"] == "g5.2xlarge"
        assert worker["InstanceLifecycle"] == "spot"
        assert worker["IamInstanceProfile"]["Arn"].endswith("/tune-rescon-worker")
    job.wait_for_words(" epoch 1/", 180)
    clock.note("submit: to the first epoch's report, from no worker", began)
    assert len(cloud.running()) == 3
    assert head(cloud).run("pgrep -fc '^ray::(run_trial|ImplicitFunc)' || true").stdout.strip() == "0"


def both(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return workers if len(workers) == 2 else []


def test_a_reclaimed_worker_costs_at_most_an_epoch(cloud: Cloud, clock: Clock, story: dict[str, Any]) -> None:
    job: JobLog = story["job"]
    job.wait_for_epochs({(0, 2), (1, 2)}, 180)
    first = cloud.running("a10g")[0]["InstanceId"]
    before = {trial: max(e for t, e in job.epochs() if t == trial) for trial in (0, 1)}
    cut = time.monotonic()
    cloud.reclaim(first)
    job.wait_for_words("starts again after epoch", 120)
    line = next(line for line in job.text().splitlines() if "starts again after epoch" in line)
    trial, recorded = int(line[6:10]), int(line.split("after epoch ")[1].split(":")[0])
    assert recorded >= before[trial] - 1
    clock.note("reclaimed: to its trial handed out again", cut)
    job.wait_for_epochs({(trial, recorded + 1)}, 200)
    clock.note("reclaimed: to the trial's next epoch, elsewhere", cut)
    assert len(job.epochs()) == len(set(job.epochs()))


def test_every_trial_finishes_with_every_epoch(file: Path, story: dict[str, Any]) -> None:
    job: JobLog = story["job"]
    job.wait_for_words(f"{TRIALS} of {TRIALS} trials ended", 240)
    wait_for("end of the job", lambda: status(file)["jobs"][-1]["status"] == "SUCCEEDED", 90, pause=2)
    story["ended"] = time.monotonic()
    said = command("tune_rescon.report", "a", "--storage", STORAGE, "--json")
    found = json.loads(said[said.index("{") :])
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * TRIALS
    assert set(job.epochs()) == {(t, e) for t in range(TRIALS) for e in range(1, EPOCHS + 1)}


def test_mlflow_is_reachable_through_the_tunnel(file: Path) -> None:
    tunnel = start("tune_rescon.cluster", "tunnel", file, "--mlflow-port", "5101", "--dashboard-port", "8365")
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


def test_idle_workers_are_terminated(cloud: Cloud, clock: Clock, story: dict[str, Any]) -> None:
    wait_for("end of the workers", lambda: not cloud.running("a10g"), 150, pause=1)
    clock.note(f"search ended: to no worker, of which {IDLE} s idle by the file", story["ended"])


def test_down_terminates_every_machine_and_keeps_the_bucket(cloud: Cloud, file: Path, clock: Clock) -> None:
    began = time.monotonic()
    command("tune_rescon.cluster", "down", file)
    clock.note("down", began)
    assert {one["State"]["Name"] for one in cloud.instances()} <= {"terminated", "shutting-down"}
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
    assert "tune_rescon/a/best.yaml" in kept
