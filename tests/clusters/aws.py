"""Deploy the stack on moto, and evaluate the IAM policies of its roles."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import boto3
import pytest
from botocore import xform_name
from botocore.loaders import Loader
from botocore.session import get_session
from moto import mock_aws

from tests.conftest import ROOT

TEMPLATE = ROOT / "cluster" / "aws" / "stack.yaml"
ACCOUNT = "123456789012"

#: The region of the `s3` fixture's server, and the region of the shipped file.
REGION = "us-east-1"
ANOTHER_REGION = "us-west-2"

#: moto's warning about resource types that it does not support.
UNKNOWN_TO_MOTO = "ignore:Tried to parse AWS..(Budgets..Budget|IAM..ServiceLinkedRole):UserWarning"

#: Shared by all clients, because botocore takes seconds to load the EC2 model.
LOADER = Loader()


def client(service: str, region: str = "us-east-1") -> Any:
    """Return an AWS client, the same one as long as the environment's variables of AWS are the same."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return _client_in(service, region, frozenset(variables.items()))


@cache
def _client_in(service: str, region: str, variables: frozenset[tuple[str, str]]) -> Any:
    del variables
    return new_client(service, region)


def new_client(service: str, region: str) -> Any:
    """Create an AWS client. It has its own session, because boto3's default session keeps old credentials."""
    session = get_session()
    session.register_component("data_loader", LOADER)
    return boto3.Session(botocore_session=session).client(service, region_name=region)


@contextmanager
def aws_in_this_process(region: str) -> Iterator[None]:
    """Run the block with moto as AWS, without the environment variables of another AWS."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", region)
        with mock_aws():
            yield


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A deployed stack: its outputs, and the policies of its two roles, which are asked for once."""

    outputs: Mapping[str, str]

    @cached_property
    def head(self) -> Sequence[Mapping[str, Any]]:
        return policies(role_of(self.outputs["HeadProfile"]))

    @cached_property
    def worker(self) -> Sequence[Mapping[str, Any]]:
        return policies(role_of(self.outputs["WorkerProfile"]))

    def __getitem__(self, output: str) -> str:
        return self.outputs[output]


def deploy(name: str, region: str, **parameters: str) -> Stack:
    """Create the stack in moto."""
    parameters = {"SshFrom": "203.0.113.7/32", **parameters}
    cloud = client("cloudformation", region)
    cloud.create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value} for key, value in sorted(parameters.items())
        ],
    )
    (found,) = cloud.describe_stacks(StackName=name)["Stacks"]
    return Stack(outputs={one["OutputKey"]: one["OutputValue"] for one in found["Outputs"]})


def role_of(profile: str) -> str:
    """Return the name of an instance profile's only role."""
    found = client("iam").get_instance_profile(InstanceProfileName=profile)
    (role,) = found["InstanceProfile"]["Roles"]
    return str(role["RoleName"])


def policies(role: str) -> list[Mapping[str, Any]]:
    """Return the statements of a role's inline policies; it must have no attached ones."""
    iam = client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    return [
        statement
        for name in names
        for statement in iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]["Statement"]
    ]


@dataclass(frozen=True, kw_only=True)
class Request:
    """An authorization request to IAM: an action on a resource, with the context keys of conditions."""

    action: str
    resource: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)


def allows(statements: Sequence[Mapping[str, Any]], request: Request) -> bool:
    """Whether any statement allows the request; requests are denied by default."""
    assert {statement["Effect"] for statement in statements} == {"Allow"}
    return any(
        any(matches(pattern, request.action) for pattern in as_list(statement["Action"]))
        and any(matches(pattern, request.resource) for pattern in as_list(statement["Resource"]))
        and all(
            condition_matches(operator, expected, request.context.get(key))
            for operator, keys in statement.get("Condition", {}).items()
            for key, expected in keys.items()
        )
        for statement in statements
    )


def condition_matches(operator: str, expected: str, found: str | None) -> bool:
    if operator == "StringEqualsIfExists":
        return found is None or found == expected
    assert operator == "StringEquals", f"unsupported operator: {operator}"
    return found == expected


def matches(pattern: str, text: str) -> bool:
    """Whether ``text`` matches an IAM pattern: ``*`` is any text and ``?`` any character."""
    regex = "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in re.split(r"([*?])", pattern))
    return re.fullmatch(regex, text) is not None


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def ec2_arn(region: str, kind: str, name: str = "x", account: str = ACCOUNT) -> str:
    return f"arn:aws:ec2:{region}:{account}:{kind}/{name}"


def iam_requests(operation: str, params: Mapping[str, Any], region: str) -> Iterator[Request]:
    """Yield the authorization requests of one EC2 call."""
    if operation == "RunInstances":
        yield from run_instances_requests(params, region)
    elif operation == "CreateTags":
        tags = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in params["Tags"]}
        for instance in params["Resources"]:
            yield instance_request("ec2:CreateTags", instance, region, tags)
    elif operation == "TerminateInstances":
        for instance in params["InstanceIds"]:
            yield instance_request("ec2:TerminateInstances", instance, region, {})
    else:
        # EC2's Describe actions have no resource.
        assert operation.startswith("Describe"), operation
        yield Request(action=f"ec2:{operation}")


def run_instances_requests(params: Mapping[str, Any], region: str) -> Iterator[Request]:
    tags = {
        f"aws:RequestTag/{tag['Key']}": tag["Value"]
        for specification in params["TagSpecifications"]
        if specification["ResourceType"] == "instance"
        for tag in specification["Tags"]
    }
    yield Request(action="ec2:RunInstances", resource=ec2_arn(region, "instance", "*"), context=tags)
    others = [
        ec2_arn(region, "image", "ami-1", account=""),
        ec2_arn(region, "key-pair", params["KeyName"]),
        ec2_arn(region, "network-interface", "*"),
        ec2_arn(region, "subnet", params["SubnetId"]),
        ec2_arn(region, "volume", "*"),
        *(ec2_arn(region, "security-group", group) for group in params["SecurityGroupIds"]),
    ]
    for resource in others:
        yield Request(action="ec2:RunInstances", resource=resource, context=tags)
    created = {**tags, "ec2:CreateAction": "RunInstances"}
    yield Request(action="ec2:CreateTags", resource=ec2_arn(region, "instance", "*"), context=created)
    role = client("iam").get_role(RoleName=role_of(params["IamInstanceProfile"]["Name"]))["Role"]
    passed = {"iam:PassedToService": "ec2.amazonaws.com"}
    yield Request(action="iam:PassRole", resource=role["Arn"], context=passed)
    scheme, _, parameter = params["ImageId"].rpartition(":")
    if scheme == "resolve:ssm":
        yield Request(action="ssm:GetParameters", resource=f"arn:aws:ssm:{region}::parameter{parameter}")


def instance_request(action: str, instance: str, region: str, context: Mapping[str, str]) -> Request:
    reserved = client("ec2", region).describe_instances(InstanceIds=[instance])
    (found,) = reserved["Reservations"][0]["Instances"]
    tags = {f"aws:ResourceTag/{tag['Key']}": tag["Value"] for tag in found.get("Tags", [])}
    resource = ec2_arn(region, "instance", instance)
    return Request(action=action, resource=resource, context={**context, **tags})


def check_aws_line(line: str) -> None:
    """Check an ``aws`` command: its operation and options exist, and all required options are given."""
    _, service, operation, *options = shlex.split(line)
    model = Loader().load_service_model(service, "service-2")
    (found,) = [name for name in model["operations"] if xform_name(name, "-") == operation]
    shape = model["shapes"][model["operations"][found]["input"]["shape"]]
    members = {f"--{xform_name(name, '-')}" for name in shape["members"]}
    given = {word for word in options if word.startswith("--")} - {"--query", "--region"}
    assert given <= members
    assert {f"--{xform_name(name, '-')}" for name in shape.get("required", ())} <= given
