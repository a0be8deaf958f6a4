"""The stack of `cluster/aws`: what it creates, and that its roles allow what Ray does and no more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.clusters.aws import (
    ACCOUNT,
    ROOT,
    TEMPLATE,
    UNKNOWN_TO_MOTO,
    Request,
    Stack,
    allows,
    aws_in_this_process,
    client,
    deploy,
    ec2_arn,
    listed,
    requests_of,
)
from tune_rescon.clusters.aws_stack import fill_in, read_stack

pytestmark = pytest.mark.timeout(60)  # boto3 reads the descriptions of whole services, and Ray is imported

REGION = "us-west-2"
OURS = "ray-cluster-name"


@pytest.fixture(scope="module")
def cloud() -> Iterator[None]:
    """An AWS of moto's in this process."""
    with aws_in_this_process(REGION):
        yield


@pytest.fixture(scope="module")
def stack(cloud: None) -> Stack:
    del cloud
    return deploy("tune-rescon", REGION)


def template() -> dict[str, Any]:
    yaml = YAML(typ="safe")
    for tag in ("!Ref", "!Sub", "!If", "!Not", "!Equals", "!GetAtt"):
        yaml.constructor.add_constructor(tag, plain)
    loaded: dict[str, Any] = yaml.load(TEMPLATE)
    return loaded


def plain(loader: Any, node: Any) -> Any:
    """An intrinsic function by its arguments, after its name."""
    if isinstance(node.value, str):
        return [node.tag, node.value]
    return [node.tag, *loader.construct_sequence(node, deep=True)]


def test_the_template_passes_cfn_lint() -> None:
    # With its informational rules, and every warning an error.
    linter = Path(sys.executable).with_name("cfn-lint")
    argv = [str(linter), "--include-checks", "I", "--", str(TEMPLATE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_bucket_is_private_encrypted_and_kept(stack: Stack) -> None:
    found = client("s3", REGION).get_bucket_encryption(Bucket=stack["Bucket"])
    (rule,) = found["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    # moto makes buckets without these.
    bucket = template()["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    blocks = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    assert bucket["Properties"]["PublicAccessBlockConfiguration"] == dict.fromkeys(blocks, True)


def test_the_security_group_allows_only_operator_ssh_and_itself(stack: Stack) -> None:
    group = stack["SecurityGroup"]
    (found,) = client("ec2", REGION).describe_security_groups(GroupIds=[group])["SecurityGroups"]
    ssh, within = sorted(found["IpPermissions"], key=lambda rule: str(rule["IpProtocol"]), reverse=True)
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == ["203.0.113.7/32"]
    assert (ssh["Ipv6Ranges"], ssh["UserIdGroupPairs"]) == ([], [])
    assert within["IpProtocol"] == "-1"
    assert [one["GroupId"] for one in within["UserIdGroupPairs"]] == [group]
    assert (within["IpRanges"], within["Ipv6Ranges"]) == ([], [])


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "10.0.0.0/7", "203.0.113.7", "::/0", "203.0.113.7/33"])
def test_ssh_from_everywhere_is_refused(cidr: str) -> None:
    pattern = template()["Parameters"]["SshFrom"]["AllowedPattern"]
    assert re.fullmatch(pattern, "203.0.113.7/32")
    assert re.fullmatch(pattern, "10.0.0.0/8")
    assert not re.fullmatch(pattern, cidr)


def test_an_existing_vpc_and_bucket_are_used(cloud: None) -> None:
    del cloud
    ec2 = client("ec2", REGION)
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    client("s3", REGION).create_bucket(
        Bucket="mine", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    made = deploy("with-mine", REGION, VpcId=vpc, ExistingBucket="mine", ClusterName="second")
    (group,) = ec2.describe_security_groups(GroupIds=[made["SecurityGroup"]])["SecurityGroups"]
    assert group["VpcId"] == vpc
    assert (made["Bucket"], made["ClusterName"]) == ("mine", "second")
    assert allows(made.worker, Request(action="s3:PutObject", resource="arn:aws:s3:::mine/a"))
    names = {name["Name"] for name in client("s3", REGION).list_buckets()["Buckets"]}
    assert not any(name.startswith("with-mine") for name in names), "a bucket that is not needed"


@pytest.mark.filterwarnings(UNKNOWN_TO_MOTO)
def test_the_spot_role_and_the_budget_are_created_on_request(cloud: None) -> None:
    del cloud
    with pytest.warns(UserWarning, match="not supported by moto") as warned:
        deploy("asked", REGION, CreateSpotRole="true", BudgetEmail="ann@example.com", BudgetDollars="50")
    assert {str(one.message).split()[3] for one in warned} == {
        "AWS::IAM::ServiceLinkedRole",
        "AWS::Budgets::Budget",
    }
    made = template()
    budget = made["Resources"]["Budget"]["Properties"]
    assert budget["Budget"]["BudgetLimit"] == {"Amount": ["!Ref", "BudgetDollars"], "Unit": "USD"}
    for notification in budget["NotificationsWithSubscribers"]:
        (subscriber,) = notification["Subscribers"]
        assert subscriber == {"SubscriptionType": "EMAIL", "Address": ["!Ref", "BudgetEmail"]}
    spot = made["Resources"]["SpotRole"]
    assert spot["Properties"] == {"AWSServiceName": "spot.amazonaws.com"}


def test_only_ec2_assumes_the_roles_and_no_action_has_a_wildcard(stack: Stack) -> None:
    iam = client("iam", REGION)
    for profile in (stack["HeadProfile"], stack["WorkerProfile"]):
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        (trusted,) = role["AssumeRolePolicyDocument"]["Statement"]
        assert trusted["Principal"] == {"Service": "ec2.amazonaws.com"}
    statements = [*stack.head, *stack.worker]
    assert not [action for one in statements for action in listed(one["Action"]) if "*" in action]
    everywhere = {action for one in statements if one["Resource"] == "*" for action in listed(one["Action"])}
    assert everywhere == {"ec2:DescribeInstances"}


@pytest.fixture(scope="module")
def calls_of_ray(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[Request]]]:
    """Each call of EC2 by Ray's node provider on the head, as IAM sees it: workers come and go."""
    del stack
    from ray.autoscaler._private.aws import node_provider, utils
    from ray.autoscaler._private.aws.config import bootstrap_aws

    text, _ = fill_in((ROOT / "cluster.yaml").read_text(), read_stack("tune-rescon", REGION), where="")
    config = YAML(typ="safe").load(text)
    calls: list[tuple[str, list[Request]]] = []
    inside = False

    def record(params: Mapping[str, Any], model: Any, **_: object) -> None:
        nonlocal inside
        if not inside:
            inside = True
            calls.append((model.name, list(requests_of(model.name, params, REGION))))
            inside = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
        # `up` does this on the operator's machine; the head has its result.
        config = bootstrap_aws(config)
        provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
        for resource in (provider.ec2, provider.ec2_fail_fast):
            resource.meta.client.meta.events.register("provide-client-params.ec2", record)
        node_config = config["available_node_types"]["l4"]["node_config"]
        tags = {"ray-node-type": "worker", "ray-node-name": "worker", "ray-user-node-type": "l4"}
        nodes = [one for _ in range(2) for one in provider.create_node(node_config, tags, 1)]
        assert sorted(provider.non_terminated_nodes({})) == sorted(nodes)
        assert provider.internal_ip(nodes[0])
        assert provider.is_running(nodes[0])
        provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        provider.terminate_node(nodes[0])
        provider.terminate_nodes([nodes[1]])
        assert provider.non_terminated_nodes({}) == []
    utils.resource_cache.cache_clear()
    return calls


def test_the_head_role_allows_every_request_of_rays_autoscaler(
    stack: Stack, calls_of_ray: list[tuple[str, list[Request]]]
) -> None:
    names = {name for name, _ in calls_of_ray}
    assert {"RunInstances", "CreateTags", "DescribeInstances", "TerminateInstances"} <= names
    refused = [
        request for _, requests in calls_of_ray for request in requests if not allows(stack.head, request)
    ]
    assert refused == []


def test_the_head_role_allows_nothing_beyond_rays_requests(
    stack: Stack, calls_of_ray: list[tuple[str, list[Request]]]
) -> None:
    requests = [request for _, requests in calls_of_ray for request in requests]
    compute = [one for one in stack.head if not any("s3:" in action for action in listed(one["Action"]))]
    for statement in compute:
        others = [one for one in compute if one is not statement]
        assert not all(allows(others, request) for request in requests), f"not needed: {statement['Sid']}"
    actions = {action for one in compute for action in listed(one["Action"])}
    assert actions == {request.action for request in requests}


def tagged(name: str, kind: str = "Request") -> dict[str, str]:
    return {f"aws:{kind}Tag/{OURS}": name}


INSTANCE = ec2_arn(REGION, "instance", "i-1")
PASSED = {"iam:PassedToService": "ec2.amazonaws.com"}

#: What the head is not allowed: why, and the request.
REFUSED = {
    "starting an untagged machine": Request(action="ec2:RunInstances", resource=INSTANCE),
    "starting another cluster's": Request(
        action="ec2:RunInstances", resource=INSTANCE, context=tagged("theirs")
    ),
    "starting in another region": Request(
        action="ec2:RunInstances",
        resource=ec2_arn("us-east-1", "instance", "i-1"),
        context=tagged("tune-rescon"),
    ),
    "starting in another group": Request(
        action="ec2:RunInstances",
        resource=ec2_arn(REGION, "security-group", "sg-1"),
        context=tagged("tune-rescon"),
    ),
    "ending an untagged machine": Request(action="ec2:TerminateInstances", resource=INSTANCE),
    "ending another cluster's": Request(
        action="ec2:TerminateInstances", resource=INSTANCE, context=tagged("theirs", "Resource")
    ),
    "taking an untagged machine for its cluster": Request(
        action="ec2:CreateTags", resource=INSTANCE, context=tagged("tune-rescon")
    ),
    "taking another cluster's": Request(
        action="ec2:CreateTags",
        resource=INSTANCE,
        context={**tagged("tune-rescon"), **tagged("theirs", "Resource")},
    ),
    "giving its machine to another cluster": Request(
        action="ec2:CreateTags",
        resource=INSTANCE,
        context={**tagged("theirs"), **tagged("tune-rescon", "Resource")},
    ),
    "tagging a volume": Request(
        action="ec2:CreateTags",
        resource=ec2_arn(REGION, "volume", "vol-1"),
        context=tagged("tune-rescon", "Resource"),
    ),
    "passing another role": Request(
        action="iam:PassRole", resource=f"arn:aws:iam::{ACCOUNT}:role/Admin", context=PASSED
    ),
    "stopping its machine": Request(
        action="ec2:StopInstances", resource=INSTANCE, context=tagged("tune-rescon", "Resource")
    ),
    "opening its group": Request(action="ec2:AuthorizeSecurityGroupIngress"),
    "making a key": Request(action="ec2:CreateKeyPair"),
    "making a role": Request(action="iam:CreateRole"),
    "reading a secret": Request(
        action="ssm:GetParameters", resource=f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/password"
    ),
    "listing the buckets": Request(action="s3:ListAllMyBuckets"),
    "reading another bucket": Request(action="s3:GetObject", resource="arn:aws:s3:::other/a"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_forbidden_requests_are_denied_to_head_and_workers(stack: Stack, what: str) -> None:
    assert not allows(stack.head, REFUSED[what])
    assert not allows(stack.worker, REFUSED[what])


def test_the_head_passes_only_the_worker_role_and_only_to_ec2(stack: Stack) -> None:
    iam = client("iam", REGION)
    head, worker = (
        iam.get_instance_profile(InstanceProfileName=stack[name])["InstanceProfile"]["Roles"][0]["Arn"]
        for name in ("HeadProfile", "WorkerProfile")
    )
    assert allows(stack.head, Request(action="iam:PassRole", resource=worker, context=PASSED))
    assert not allows(stack.head, Request(action="iam:PassRole", resource=head, context=PASSED))
    other = {"iam:PassedToService": "lambda.amazonaws.com"}
    assert not allows(stack.head, Request(action="iam:PassRole", resource=worker, context=other))


def test_worker_role_allows_only_the_bucket(stack: Stack) -> None:
    bucket = f"arn:aws:s3:::{stack['Bucket']}"
    assert {action for one in stack.worker for action in listed(one["Action"])} == {
        "s3:ListBucket",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
    }
    for statements in (stack.head, stack.worker):
        assert allows(statements, Request(action="s3:GetObject", resource=f"{bucket}/a/b"))
        assert not allows(statements, Request(action="s3:GetObject", resource=f"{bucket}-2/a"))
        assert not allows(statements, Request(action="s3:ListBucket", resource=f"{bucket}-2"))
        for action in ("DeleteBucket", "PutBucketPolicy", "PutBucketAcl"):
            assert not allows(statements, Request(action=f"s3:{action}", resource=bucket))
