"""`cluster configure`: what it writes into a cluster's file, and what it refuses, with moto as AWS."""

from __future__ import annotations

import http.server
import sys
import threading
from pathlib import Path

import pytest
from moto.cloudformation.models import cloudformation_backends

from tests.clusters.aws import ACCOUNT, ANOTHER_REGION, REGION, ROOT, TEMPLATE, check_aws_line, client, deploy
from tune_rescon.__main__ import main
from tune_rescon.clusters.aws_stack import StackOutputs, fill_in
from tune_rescon.errors import ClusterFileError

SHIPPED = (ROOT / "cluster.yaml").read_text()

OUTPUTS = StackOutputs(
    cluster_name="tune-rescon",
    region="eu-west-1",
    security_group="sg-0123",
    head_profile="mine-HeadProfile-A1",
    worker_profile="mine-WorkerProfile-B2",
    bucket="mine-bucket-c3",
)


def configure(*options: str, stack: str = "one") -> int:
    return main(["cluster", "configure", "cluster.yaml", "--stack", stack, *options])


@pytest.mark.s3
def test_a_second_run_changes_nothing(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("one", REGION)
    assert configure() == 0
    first = (account / "cluster.yaml").stat()
    capsys.readouterr()
    assert configure() == 0
    assert capsys.readouterr().out.startswith("cluster.yaml has the outputs of one already.\n")
    assert (account / "cluster.yaml").stat().st_ino == first.st_ino, "it was written"


@pytest.mark.s3
def test_another_stack_replaces_the_first(account: Path) -> None:
    first, second = deploy("one", REGION), deploy("two", ANOTHER_REGION)
    assert configure() == 0
    assert configure("--region", ANOTHER_REGION, stack="two") == 0
    text = (account / "cluster.yaml").read_text()
    assert not any(first[name] in text for name in ("Bucket", "SecurityGroup", "HeadProfile"))
    assert all(value in text for value in second.outputs.values())


@pytest.mark.s3
def test_the_region_of_the_file_is_used_if_none_is_configured(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy("one", ANOTHER_REGION)
    with monkeypatch.context() as patch:
        patch.delenv("AWS_DEFAULT_REGION")
        patch.setenv("AWS_CONFIG_FILE", str(account / "none"))
        assert configure() == 0
    assert f"region: {ANOTHER_REGION}" in (account / "cluster.yaml").read_text()


@pytest.mark.s3
@pytest.mark.usefixtures("account")
def test_a_missing_spot_role_shows_the_command_that_creates_it(capsys: pytest.CaptureFixture[str]) -> None:
    deploy("one", REGION)
    assert configure() == 0
    (line,) = [one.strip() for one in capsys.readouterr().out.splitlines() if one.startswith("    aws ")]
    check_aws_line(line)
    # moto gives the role that this command makes another name.
    client("iam").create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")
    assert configure() == 0
    assert "aws iam" not in capsys.readouterr().out


@pytest.mark.s3
@pytest.mark.usefixtures("account")
def test_a_failed_spot_role_lookup_does_not_stop_configure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy("one", REGION)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_IAM", "http://127.0.0.1:1")
        assert configure() == 0
    assert "aws iam" not in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], account: Path, code: int, *options: str) -> str:
    """What `configure` says where it fails: one line, and the file and its folder stay as they were."""
    before = sorted(account.iterdir())
    text = (account / "cluster.yaml").read_text()
    assert configure(*options) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert (account / "cluster.yaml").read_text() == text
    assert sorted(account.iterdir()) == before
    return said.err


@pytest.mark.s3
def test_an_unknown_stack_is_refused(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("two", REGION)
    said = refused(capsys, account, 2)
    assert said.startswith("Error: --stack: must be a stack in us-east-1, but got one. Deploy it with `aws ")
    assert "--region" in said


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "then"),
    [
        ("CREATE_IN_PROGRESS", "Try again when it is."),
        ("DELETE_IN_PROGRESS", "Try again when it is."),
        ("ROLLBACK_COMPLETE", "Delete it, and deploy it again."),
    ],
)
def test_an_incomplete_stack_is_refused(
    status: str, then: str, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy("one", REGION)
    (made,) = cloudformation_backends[ACCOUNT][REGION].stacks.values()
    made.status = status
    said = refused(capsys, account, 1)
    assert f"The stack one is not complete, but {status}. {then} What happened: " in said
    check_aws_line(said.strip().partition("What happened: ")[2])


@pytest.mark.s3
def test_a_stack_with_missing_outputs_is_refused(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = TEMPLATE.read_text().replace("  WorkerProfile: {Value: !Ref WorkerProfile}\n", "")
    cloud = client("cloudformation", REGION)
    address = {"ParameterKey": "SshFrom", "ParameterValue": "10.0.0.0/8"}
    cloud.create_stack(StackName="one", TemplateBody=template, Parameters=[address])
    said = refused(capsys, account, 2)
    assert (
        "must be a stack of cluster/aws/stack.yaml, with the outputs WorkerProfile, but got one, which"
        in said
    )


@pytest.mark.s3
def test_a_stack_for_another_cluster_is_refused(account: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy("one", REGION, ClusterName="second")
    said = refused(capsys, account, 2)
    assert "cluster_name: must be second, the ClusterName of the stack one, but got tune-rescon." in said


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "Unable to locate credentials"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials found"),
        ({"AWS_PROFILE": "nope"}, "The config profile (nope) could not be found"),
    ],
)
def test_missing_or_invalid_credentials_are_reported(
    variables: dict[str, str | None],
    why: str,
    account: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(account / "none"))
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            if value is None:
                patch.delenv(name)
            else:
                patch.setenv(name, value)
        said = refused(capsys, account, 2)
    assert said.startswith("Error: AWS credentials: must be there and valid, but got ")
    assert why in said
    assert "`aws configure`" in said


class Refusing(http.server.HTTPServer):
    """An AWS that answers every request with the same error."""

    def __init__(self, code: str) -> None:
        super().__init__(("127.0.0.1", 0), Refusal)
        self.code = code


class Refusal(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Refusing)
        code = self.server.code
        body = f"<ErrorResponse><Error><Code>{code}</Code><Message>No.</Message></Error></ErrorResponse>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.s3
@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("ExpiredToken", 2, "AWS credentials: must be there and valid"),
        ("InvalidClientTokenId", 2, "AWS credentials: must be there and valid"),
        ("AccessDenied", 1, "AWS did not give the stack one in us-east-1: An error occurred (AccessDenied)"),
    ],
)
def test_an_aws_error_response_is_reported(
    code: str,
    exit_code: int,
    words: str,
    account: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Refusing(code)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            assert words in refused(capsys, account, exit_code)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.s3
def test_an_unreachable_aws_is_reported(
    account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        said = refused(capsys, account, 1)
    assert "AWS did not give the stack one in us-east-1: Could not connect to the endpoint URL" in said


@pytest.mark.s3
def test_a_full_disk_leaves_the_file_as_it_was(
    account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deploy("one", REGION)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("tune_rescon.atomic_write.sync", full)
        assert "No space left on device" in refused(capsys, account, 1)


@pytest.mark.s3
def test_a_symlink_and_the_mode_of_its_target_are_kept(account: Path) -> None:
    deploy("one", REGION)
    link, real = account / "cluster.yaml", account / "real.yaml"
    link.rename(real)
    link.symlink_to(real)
    real.chmod(0o600)
    assert configure() == 0
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert "us-east-1" in real.read_text()


@pytest.mark.parametrize("provider", ["gcp", "local"])
def test_another_cloud_is_refused(provider: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(f"provider: {{type: {provider}}}\n")
    assert main(["cluster", "configure", str(path), "--stack", "one"]) == 2
    assert f"provider.type: must be a file for AWS, but got {provider}." in capsys.readouterr().err


def test_a_missing_region_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    path = tmp_path / "cluster.yaml"
    path.write_text("provider: {type: aws}\n")
    assert main(["cluster", "configure", str(path), "--stack", "one"]) == 2
    assert f"{path}: provider.region: must be there." in capsys.readouterr().err


def test_missing_boto3_is_reported_with_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    path = tmp_path / "cluster.yaml"
    path.write_text("provider: {type: aws}\n")
    assert main(["cluster", "configure", str(path), "--stack", "one"]) == 2
    assert "pip install 'tune_rescon[cluster]'" in capsys.readouterr().err


# What is written, and where.


def test_only_the_five_marked_values_change() -> None:
    filled, changes = fill_in(SHIPPED, OUTPUTS, where="cluster.yaml")
    lines = list(zip(SHIPPED.splitlines(), filled.splitlines(), strict=True))
    changed = [number for number, (old, new) in enumerate(lines, start=1) if old != new]
    marked = [number for number, (old, _) in enumerate(lines, start=1) if "# CHANGE" in old]
    assert changed == marked == [change.line for change in changes]
    assert [change.place for change in changes] == [
        "provider.region",
        "available_node_types.head.node_config.SecurityGroupIds",
        "available_node_types.head.node_config.IamInstanceProfile",
        "available_node_types.a10g.node_config.IamInstanceProfile",
        "setup_commands[0]",
    ]
    for change in changes:
        old, new = lines[change.line - 1]
        assert old.replace(change.before, change.after, 1) == new
    assert fill_in(filled, OUTPUTS, where="") == (filled, [])


OTHER = """\
cluster_name: tune-rescon
provider: {type: aws, region: "us-west-2"}   # quotes, and a flow
head_node_type: first
available_node_types:
  second:
    node_config:
      SecurityGroupIds:
      - sg-old
      IamInstanceProfile:
        Name: 'old'   # a worker's, before the head's
  first:
    node_config: {SecurityGroupIds: [sg-old], IamInstanceProfile: {Name: old}}
docker:
  run_options: [--env TUNE_RESCON_STORAGE=s3://old/runs]
head_setup_commands:
  - >-
    export TUNE_RESCON_STORAGE="s3://old/runs" &&
    echo s3://old/photos
"""


def test_a_file_in_another_yaml_style_is_filled_in() -> None:
    filled, changes = fill_in(OTHER, OUTPUTS, where="")
    assert filled == OTHER.replace('"us-west-2"', "eu-west-1").replace("sg-old", "sg-0123").replace(
        "'old'", "mine-WorkerProfile-B2"
    ).replace("{Name: old}", "{Name: mine-HeadProfile-A1}").replace("old/runs", "mine-bucket-c3/runs")
    assert [change.line for change in changes] == [2, 8, 10, 12, 12, 14, 17]


def test_line_endings_and_non_ascii_text_are_kept() -> None:
    text = ("# größer 🐜\n" + SHIPPED).replace("\n", "\r\n")
    filled, _ = fill_in(text, OUTPUTS, where="")
    assert filled.replace("\r\n", "\n") == "# größer 🐜\n" + fill_in(SHIPPED, OUTPUTS, where="")[0]
    assert filled.count("\r\n") == filled.count("\n") == text.count("\n")


#: What a file lacks: a part of the shipped one, what is there instead, and the places that are named.
LACKING = {
    "no region": ("  region: us-west-2 ", "  # ", "none that sets provider.region."),
    "no group": (
        "      SecurityGroupIds:",
        "      # ",
        "available_node_types.head.node_config.SecurityGroupIds",
    ),
    "two groups": (
        "[sg-CHANGE]",
        "[sg-CHANGE, sg-2]",
        "available_node_types.l4.node_config.SecurityGroupIds",
    ),
    "a worker with the head's profile": (
        "      IamInstanceProfile: {Name: CHANGE-worker}",
        "      # ",
        "none that sets available_node_types.a10g.node_config.IamInstanceProfile, available_node_types.l4.",
    ),
    "a profile by its address": ("{Name: CHANGE-head}", "{Arn: a}", "head.node_config.IamInstanceProfile."),
    "no storage": ("TUNE_RESCON_STORAGE=", "STORAGE=", "TUNE_RESCON_STORAGE=s3://... in setup_commands."),
    "a storage elsewhere": (
        "=s3://CHANGE",
        "=gs://CHANGE",
        "TUNE_RESCON_STORAGE=s3://... in setup_commands.",
    ),
    "a value that another one repeats": (
        "region: us-west-2 ",
        "region: &here us-west-2\n  availability_zone: *here ",
        "must have plain values, but got anchors or quotes.",
    ),
}


@pytest.mark.parametrize("what", LACKING)
def test_a_file_without_the_expected_values_is_refused(what: str) -> None:
    old, new, words = LACKING[what]
    assert SHIPPED.count(old) == 1
    with pytest.raises(ClusterFileError) as refusal:
        fill_in(SHIPPED.replace(old, new), OUTPUTS, where="cluster.yaml")
    assert str(refusal.value).startswith("cluster.yaml: ")
    assert words in str(refusal.value)
