"""Fill in a cluster file from the outputs of the CloudFormation stack of ``cluster/aws/stack.yaml``.

The stack creates what a cluster needs on AWS before its first machine. Its outputs are the values of the
lines of ``cluster.yaml`` that are marked CHANGE. Only these values are replaced, by their position in the
text. Every other character of the file stays, comments included.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tune_rescon.atomic_write import atomic_write
from tune_rescon.clusters.cluster_file import is_command, read_cluster_file, texts_in, value_at
from tune_rescon.errors import ClusterError, ClusterFileError, KeyPath, UserError, dotted, format_error

__all__ = [
    "Change",
    "StackOutputs",
    "aws_session",
    "configure_file",
    "fill_in",
    "has_spot_role",
    "read_stack",
]

#: The role that EC2 itself needs for spot machines, one for an account.
SPOT_ROLE: Final = "AWSServiceRoleForEC2Spot"

#: The states of a stack whose outputs can be used; of a failed update, those from before it.
_COMPLETE: Final = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")

#: AWS's codes for credentials that it does not accept.
_BAD_CREDENTIALS: Final = (
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)

#: The bucket in a command that sets the storage.
_BUCKET: Final = re.compile(r"\bTUNE_RESCON_STORAGE=[\"']?s3://([^\s\"';&|/]+)")

_GROUPS: Final = "SecurityGroupIds"
_PROFILE: Final = "IamInstanceProfile"


@dataclass(frozen=True, kw_only=True)
class StackOutputs:
    """The outputs of the stack, each the value of a line of ``cluster.yaml``."""

    cluster_name: str
    """The tag whose machines the head may start and end."""
    region: str
    security_group: str
    head_profile: str
    worker_profile: str
    bucket: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value of a cluster's file that was replaced."""

    line: int
    place: str
    """The keys that lead to the value, such as ``provider.region``."""
    before: str
    after: str


#: The name of each output in the template.
_OUTPUT_NAMES: Final[Mapping[str, str]] = {
    "cluster_name": "ClusterName",
    "region": "Region",
    "security_group": "SecurityGroup",
    "head_profile": "HeadProfile",
    "worker_profile": "WorkerProfile",
    "bucket": "Bucket",
}


def configure_file(path: Path, stack: str, *, region: str | None = None) -> tuple[StackOutputs, list[Change]]:
    """Write the outputs of a stack into a cluster's file; return them, and the changes by line.

    A file that has the values already is not written. If anything fails, the file stays as it was.

    Args:
        path: the cluster's file.
        stack: the stack's name.
        region: the stack's region; None: that of the AWS configuration, or else that of the file.

    Raises:
        UserError: there are no valid credentials, no such stack, or not all of the outputs.
        ClusterFileError: the file describes no cluster on AWS, or one of its lines is missing.
        ClusterError: the stack is not complete, or AWS did not answer.
    """
    read = read_cluster_file(path)
    if read.provider != "aws":
        rule = "must be a file for AWS"
        raise ClusterFileError(format_error(rule, got=read.provider, where=f"{path}: provider.type"))
    region = region or _configured_region() or read.region
    if region is None:
        raise ClusterFileError(format_error("must be there", where=f"{path}: provider.region"))
    outputs = read_stack(stack, region)
    if read.name != outputs.cluster_name:
        rule = f"must be {outputs.cluster_name}, the ClusterName of the stack {stack}"
        hint = "The head may start no machine of another name: change one of them."
        raise ClusterFileError(format_error(rule, got=read.name, where=f"{path}: cluster_name", hint=hint))
    # As bytes, because reading as text would change the ends of the lines.
    text = path.read_bytes().decode("utf-8")
    filled, changes = fill_in(text, outputs, where=str(path))
    if filled != text:
        target = path.resolve()
        with atomic_write(target, durable=True) as scratch:
            scratch.write_bytes(filled.encode("utf-8"))
            shutil.copymode(target, scratch)
    return outputs, changes


def read_stack(name: str, region: str) -> StackOutputs:
    """Ask CloudFormation for the outputs of a stack.

    Raises:
        UserError: there are no valid credentials, no such stack, or not all of the outputs.
        ClusterError: the stack is not complete, or AWS did not answer.
    """
    with aws_session(f"the stack {name} in {region}") as session:
        client = session.client("cloudformation", region_name=region)
        try:
            (found,) = client.describe_stacks(StackName=name)["Stacks"]
        except client.exceptions.ClientError as error:
            if "does not exist" not in str(error):
                raise
            rule = f"must be a stack in {region}"
            hint = f"Deploy it with `aws cloudformation deploy --stack-name {name}`, or give its --region."
            raise UserError(format_error(rule, got=name, where="--stack", hint=hint)) from None
    _check_complete(name, region, found["StackStatus"])
    values = {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", ())}
    missing = [output for output in _OUTPUT_NAMES.values() if not values.get(output)]
    if missing:
        rule = f"must be a stack of cluster/aws/stack.yaml, with the outputs {', '.join(missing)}"
        got = f"{name}, which has {', '.join(sorted(values)) or 'no output'}"
        raise UserError(format_error(rule, got=got, where="--stack"))
    return StackOutputs(**{field: values[output] for field, output in _OUTPUT_NAMES.items()})


def has_spot_role(region: str) -> bool:
    """Return whether the account has EC2's role for spot machines; True if AWS does not answer."""
    try:
        with aws_session(f"the role {SPOT_ROLE}") as session:
            client = session.client("iam", region_name=region)
            try:
                client.get_role(RoleName=SPOT_ROLE)
            except client.exceptions.NoSuchEntityException:
                return False
    except (ClusterError, UserError):
        # The answer is only for a hint. Credentials that suffice for the cluster may not allow the question.
        return True
    return True


def _check_complete(name: str, region: str, status: str) -> None:
    if status in _COMPLETE:
        return
    then = "Try again when it is" if status.endswith("_IN_PROGRESS") else "Delete it, and deploy it again"
    why = f"aws cloudformation describe-stack-events --stack-name {name} --region {region}"
    raise ClusterError(f"The stack {name} is not complete, but {status}. {then}. What happened: {why}")


def _configured_region() -> str | None:
    with aws_session("the configuration") as session:
        region: str | None = session.region_name
        return region


@contextmanager
def aws_session(what: str) -> Iterator[Any]:
    """Yield a session of boto3, and raise boto3's errors as ours; ``what`` is what AWS is asked for."""
    try:
        # Imported here, because only the extra `cluster` installs it.
        import boto3
        from botocore import exceptions
    except ImportError:
        hint = "pip install 'tune_rescon[cluster]'"
        raise UserError(format_error("AWS is asked with boto3, which is not installed", hint=hint)) from None
    try:
        yield boto3.Session()
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.ProfileNotFound,
        exceptions.SSOError,
        exceptions.TokenRetrievalError,
    ) as error:
        _refuse_credentials(str(error))
    except exceptions.ClientError as error:
        if error.response["Error"]["Code"] in _BAD_CREDENTIALS:
            _refuse_credentials(str(error))
        raise ClusterError(f"AWS did not give {what}: {error}") from None
    except exceptions.BotoCoreError as error:
        raise ClusterError(f"AWS did not give {what}: {error}") from None


def _refuse_credentials(why: str) -> NoReturn:
    rule = "must be there and valid"
    hint = "`aws configure` or `aws sso login` makes them; AWS_PROFILE chooses among several."
    raise UserError(format_error(rule, got=why.rstrip("."), where="AWS credentials", hint=hint)) from None


def fill_in(text: str, outputs: StackOutputs, *, where: str) -> tuple[str, list[Change]]:
    """Return a cluster file's text with the values of ``outputs``, and the changes by line.

    Args:
        text: the file's text: YAML that describes a cluster.
        outputs: the values.
        where: the file's name, which the error message has.

    Raises:
        ClusterFileError: a line is missing that should have one of the values.
    """
    spans = sorted(_spans(text, YAML().compose(text), outputs), key=lambda span: span.start)
    pieces, end = [], 0
    for span in spans:
        pieces += [text[end : span.start], span.value]
        end = span.end
    filled = "".join([*pieces, text[end:]])
    try:
        content = YAML(typ="safe").load(filled)
    except YAMLError:
        # A value with an anchor: its place in the text includes the anchor's name.
        rule = "the lines marked CHANGE must have plain values"
        raise ClusterFileError(format_error(rule, got="anchors or quotes", where=where)) from None
    wrong = list(_wrong_places(content, outputs))
    if wrong:
        rule = "must have the lines that cluster.yaml has marked CHANGE"
        got = f"none that sets {', '.join(wrong)}"
        hint = "Copy them from the cluster.yaml of this checkout."
        raise ClusterFileError(format_error(rule, got=got, where=where, hint=hint))
    changes = [
        Change(
            line=text.count("\n", 0, span.start) + 1,
            place=dotted(span.steps),
            before=text[span.start : span.end],
            after=span.value,
        )
        for span in spans
    ]
    return filled, [change for change in changes if change.before != change.after]


@dataclass(frozen=True, kw_only=True)
class _Span:
    """A part of the text, and the value to put there."""

    start: int
    end: int
    value: str
    steps: KeyPath


def _spans(text: str, root: Any, outputs: StackOutputs) -> Iterator[_Span]:
    """Yield each value to replace. A value that aliases share has one place in the text, so it comes once."""
    region = _child(_child(root, "provider"), "region")
    if _is_scalar(region):
        yield _span_of(region, outputs.region, ("provider", "region"))
    head = _child(root, "head_node_type")
    done: set[int] = set()
    for key, node_type in _items(_child(root, "available_node_types")):
        config = _child(node_type, "node_config")
        if id(config) in done:
            continue
        done.add(id(config))
        steps: KeyPath = ("available_node_types", key, "node_config")
        groups = _child(config, _GROUPS)
        if groups is not None and isinstance(groups.value, list) and len(groups.value) == 1:
            yield _span_of(groups.value[0], outputs.security_group, (*steps, _GROUPS))
        name = _child(_child(config, _PROFILE), "Name")
        if _is_scalar(name):
            is_head = head is not None and key == head.value
            profile = outputs.head_profile if is_head else outputs.worker_profile
            yield _span_of(name, profile, (*steps, _PROFILE))
    for steps, node in _commands(root):
        for found in _BUCKET.finditer(text, node.start_mark.index, node.end_mark.index):
            yield _Span(start=found.start(1), end=found.end(1), value=outputs.bucket, steps=steps)


def _commands(node: Any, steps: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for key, child in _items(node):
        below = (*steps, key)
        if isinstance(child.value, list):
            yield from _commands(child, below)
        elif is_command(below):
            yield below, child


def _span_of(node: Any, value: str, steps: KeyPath) -> _Span:
    return _Span(start=node.start_mark.index, end=node.end_mark.index, value=value, steps=steps)


def _items(node: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield the keys or positions of a composed node, with the nodes there; a merge key is left out."""
    for index, entry in enumerate(node.value if node is not None and isinstance(node.value, list) else ()):
        if not isinstance(entry, tuple):
            yield index, entry
        elif entry[0].value != "<<":
            yield entry[0].value, entry[1]


def _child(node: Any, key: str) -> Any:
    return next((child for name, child in _items(node) if name == key), None)


def _is_scalar(node: Any) -> bool:
    return node is not None and isinstance(node.value, str)


def _wrong_places(content: Any, outputs: StackOutputs) -> Iterator[str]:
    """Yield the places whose value, as Ray reads the file, is not that of the outputs."""
    if value_at(content, "provider", "region") != outputs.region:
        yield "provider.region"
    for name in value_at(content, "available_node_types") or ():
        steps: KeyPath = ("available_node_types", name, "node_config")
        profile = outputs.head_profile if name == content.get("head_node_type") else outputs.worker_profile
        if value_at(content, *steps, _GROUPS) != [outputs.security_group]:
            yield dotted((*steps, _GROUPS))
        if value_at(content, *steps, _PROFILE) != {"Name": profile}:
            yield dotted((*steps, _PROFILE))
    buckets = {
        bucket for steps, text in texts_in(content) if is_command(steps) for bucket in _BUCKET.findall(text)
    }
    if buckets != {outputs.bucket}:
        yield "TUNE_RESCON_STORAGE=s3://... in setup_commands"
