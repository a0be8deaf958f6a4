"""The head terminates the machines of its own cluster on moto's EC2, with the permissions of the stack."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clusters.aws import (
    Request,
    Stack,
    allows,
    aws_in_this_process,
    client,
    deploy,
    iam_requests,
    new_client,
)
from tests.conftest import ROOT
from tune_rescon.cluster import main
from tune_rescon.clusters import idle_head
from tune_rescon.clusters.idle_head import Ec2Machines, open_machines
from tune_rescon.errors import ClusterError, UserError

pytestmark = pytest.mark.timeout(60)  # boto3 loads the models of whole services

REGION = "us-west-2"
NAME = "tune-rescon"


@pytest.fixture(scope="module")
def deployed_stack() -> Iterator[Stack]:
    """The stack, deployed in moto in this process."""
    with aws_in_this_process(REGION):
        yield deploy(NAME, REGION)


@pytest.fixture
def stack(deployed_stack: Stack) -> Iterator[Stack]:
    """The stack, without any machine."""
    yield deployed_stack
    if left := sorted(running_instances()):
        client("ec2", REGION).terminate_instances(InstanceIds=left)


@pytest.fixture
def ec2_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool, list[Request]]]:
    """The EC2 calls of this package: name, whether it is a dry run, and the IAM requests."""
    ec2_calls: list[tuple[str, bool, list[Request]]] = []

    class RecordingSession:
        def client(self, service: str, region_name: str) -> Any:
            created = new_client(service, region_name)
            created.meta.events.register("provide-client-params.ec2", record)
            return created

    def record(params: Mapping[str, Any], model: Any, **_: object) -> None:
        ec2_calls.append(
            (model.name, bool(params.get("DryRun")), list(iam_requests(model.name, params, REGION)))
        )

    monkeypatch.setattr(idle_head, "aws_session", lambda _what: nullcontext(RecordingSession()))
    return ec2_calls


def start(kind: str, cluster: str | None = NAME) -> str:
    """Start an instance with Ray's tags and return its id."""
    tags = {"ray-cluster-name": cluster, "ray-node-type": kind} if cluster else {}
    created = client("ec2", REGION).run_instances(
        ImageId="ami-12c6146b",
        InstanceType="m7i.large",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ]
        if tags
        else [],
    )
    return str(created["Instances"][0]["InstanceId"])


def instances() -> dict[str, dict[str, Any]]:
    pages = client("ec2", REGION).describe_instances()["Reservations"]
    return {one["InstanceId"]: one for page in pages for one in page["Instances"]}


def running_instances() -> set[str]:
    gone = ("shutting-down", "terminated")
    return {name for name, one in instances().items() if one["State"]["Name"] not in gone}


def machines_of(head: str) -> Ec2Machines:
    return Ec2Machines(NAME, REGION, [instances()[head]["PrivateIpAddress"]])


def skip_wait(_seconds: float) -> None:
    """Do not wait."""


def test_the_workers_end_first_and_the_head_last(
    stack: Stack, ec2_calls: list[tuple[str, bool, list[Request]]]
) -> None:
    head, *workers = start("head"), start("worker"), start("worker")
    others = {start("head", "theirs"), start("worker", "theirs"), start("worker", None)}
    machines = machines_of(head)
    machines.check()
    assert running_instances() == {head, *workers, *others}, "a dry run terminates nothing"
    ec2_calls.clear()
    machines.end(skip_wait)
    assert running_instances() == others
    named = [
        [request.resource.rpartition("/")[2] for request in requests]
        for name, _, requests in ec2_calls
        if name == "TerminateInstances"
    ]
    assert [set(one) for one in named] == [set(workers), {head}]
    del stack


def test_the_stack_allows_termination_to_the_head_only(
    stack: Stack, ec2_calls: list[tuple[str, bool, list[Request]]]
) -> None:
    head = start("head")
    start("worker")
    machines = machines_of(head)
    machines.check()
    machines.end(skip_wait)
    assert {name for name, _, _ in ec2_calls} == {"DescribeInstances", "TerminateInstances"}
    assert [dry_run for name, dry_run, _ in ec2_calls if name == "TerminateInstances"] == [True, False, False]
    for _, _, requests in ec2_calls:
        for request in requests:
            assert allows(stack.head, request), request
            assert not allows(stack.worker, request), request


def test_a_worker_that_starts_during_termination_is_terminated_too(stack: Stack) -> None:
    head = start("head")
    start("worker")
    extra_starts = iter([lambda: start("worker")])
    machines_of(head).end(lambda _seconds: next(extra_starts, lambda: None)())
    assert running_instances() == set()
    del stack


def test_workers_that_do_not_end_keep_the_head(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_head, "TRIES", 3)
    head = start("head")
    start("worker")
    with pytest.raises(ClusterError, match=f"EC2 does not end the workers of {NAME}"):
        machines_of(head).end(lambda _seconds: start("worker") and None)
    assert head in running_instances()
    del stack


@pytest.mark.parametrize("heads", [0, 1, 2])
def test_only_the_single_head_may_terminate_machines(stack: Stack, heads: int) -> None:
    started = [*(start("head") for _ in range(heads)), start("worker")]
    address = "192.0.2.1" if heads == 1 else instances()[started[0]]["PrivateIpAddress"]
    elsewhere = Ec2Machines(NAME, REGION, [address])
    for action in (elsewhere.check, elsewhere.end):
        with pytest.raises(ClusterError, match="must be the head of tune-rescon, and the only one"):
            action()
    assert running_instances() == set(started)
    del stack


def test_a_missing_right_to_terminate_is_reported(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.client

    head = start("head")
    ready = machines_of(head)
    real = botocore.client.BaseClient._make_api_call

    def refuse(self: Any, operation: str, params: Any) -> Any:
        if operation == "TerminateInstances":
            raise ClientError({"Error": {"Code": "UnauthorizedOperation", "Message": "no"}}, operation)
        return real(self, operation, params)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    with pytest.raises(
        ClusterError, match="must have the right to end the machines of tune-rescon"
    ) as raised:
        ready.check()
    assert "cluster/aws/stack.yaml gives that right" in str(raised.value)
    del stack


def test_the_cluster_is_read_from_rays_bootstrap_config(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = start("head")
    address = instances()[head]["PrivateIpAddress"]
    monkeypatch.setattr(idle_head, "local_addresses", lambda: frozenset({address}))
    config_file = tmp_path / "ray_bootstrap_config.yaml"
    config_file.write_text((ROOT / "cluster.yaml").read_text())
    open_machines(config_file).end(skip_wait)
    assert running_instances() == set()
    config_file.write_text((ROOT / "cluster" / "local.yaml").read_text())
    with pytest.raises(UserError, match="a cluster can end itself where its provider is aws, but got local"):
        open_machines(config_file)
    del stack


def test_hours_are_saved_only_if_the_head_may_end_the_cluster(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda argv, **_: started.append(argv))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text((ROOT / "cluster.yaml").read_text())
    setting = tmp_path / ".ray" / "end_after_idle"
    assert main(["end-when-idle", "--hours", "4"]) == 1
    assert "must be the head of tune-rescon" in capsys.readouterr().err
    assert (setting.exists(), started) == (False, [])
    head = start("head")
    address = instances()[head]["PrivateIpAddress"]
    monkeypatch.setattr(idle_head, "local_addresses", lambda: frozenset({address}))
    assert main(["end-when-idle", "--hours", "4"]) == 0
    assert setting.read_text() == "4\n"
    assert [argv[-2:] for argv in started] == [["tune_rescon.cluster", "end-when-idle"]]
    assert main(["end-when-idle", "--hours", "0"]) == 0
    assert not setting.exists()
    assert main(["end-when-idle"]) == 0
    assert "The cluster does not end itself: no hours are set" in capsys.readouterr().out
    del stack
