"""From an AWS account to a cluster: the documented commands on moto, and access to the bucket."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.aws import REGION, TEMPLATE, Request, Stack, allows, check_aws_line, deploy
from tests.clusters.conftest import NO_HEAD, FakeRay, InspectOutput
from tests.conftest import ROOT, S3Server, accept_all
from tune_rescon.__main__ import main
from tune_rescon.clusters.commands import Completed
from tune_rescon.clusters.status import Job
from tune_rescon.storage.remote import RemoteFolder, StorageUrl

SHIPPED = (ROOT / "cluster.yaml").read_text()
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/howto/cluster.md")}


def command_lines(page: str) -> list[str]:
    """Return the commands of the indented blocks below a page's title `A GPU cluster`."""
    _, _, section = PAGES[page].partition("# A GPU cluster\n")
    section = re.split(r"^## (?!Ask|What it costs|The stack)", section, flags=re.MULTILINE)[0]
    blocks = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()


def split_line(line: str) -> list[str]:
    """Split a command line as a shell does, with a fixed address of the operator."""
    shell = "aws() { printf '%s\\0' aws \"$@\"; }; tune-rescon() { printf '%s\\0' tune-rescon \"$@\"; }\n"
    shell += "curl() { echo 203.0.113.7; }\n"
    done = subprocess.run(["bash", "-c", shell + line], capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\0").split("\0")


def deploy_stack(arguments: list[str]) -> Stack:
    """Deploy a new stack as `aws cloudformation deploy` does."""
    assert arguments[:3] == ["aws", "cloudformation", "deploy"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in ("--stack-name", "--template-file", "--capabilities"):
        parser.add_argument(option, required=True)
    parser.add_argument("--parameter-overrides", nargs="+", default=[])
    options = parser.parse_args(arguments[3:])
    assert Path(options.template_file).read_text() == TEMPLATE.read_text()
    # Roles need CAPABILITY_IAM. Named resources would need CAPABILITY_NAMED_IAM; the stack has none.
    assert options.capabilities == "CAPABILITY_IAM"
    parameters = dict(word.split("=", 1) for word in options.parameter_overrides)
    pattern = re.search(r"AllowedPattern: '(.*)'", TEMPLATE.read_text())
    assert pattern is not None
    assert re.fullmatch(pattern[1], parameters["SshFrom"])
    return deploy(options.stack_name, REGION, **parameters)


def test_both_pages_have_the_same_four_commands() -> None:
    readme, howto = ([shlex.split(line, comments=True) for line in command_lines(page)][:4] for page in PAGES)
    assert readme == howto
    assert [arguments[:3] for arguments in howto] == [
        ["aws", "cloudformation", "deploy"],
        ["tune-rescon", "cluster", "configure"],
        ["tune-rescon", "cluster", "up"],
        ["tune-rescon", "cluster", "submit"],
    ]
    assert not any("..." in line for page in PAGES for line in command_lines(page))


class InteractiveInput(StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.s3
@pytest.mark.parametrize("page", PAGES)
def test_the_pages_four_commands_configure_start_and_submit(
    page: str,
    account: Path,
    fake_ray: FakeRay,
    inspect_output: InspectOutput,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deploy_line, *our_lines = (split_line(line) for line in command_lines(page)[:4])
    stack = deploy_stack(deploy_line)
    configure, up, submit = (arguments[1:] for arguments in our_lines)
    assert main(configure) == 0
    stdout = capsys.readouterr().out
    changed = [line for line in stdout.splitlines() if " -> " in line]
    marked = [line for line in SHIPPED.splitlines() if "# CHANGE" in line]
    assert len(changed) == len(marked) == 5

    # `up` runs this check first. It has no warnings left.
    assert main(["cluster", "check", "cluster.yaml"]) == 0
    assert capsys.readouterr().out == ""
    text = (account / "cluster.yaml").read_text()
    for value in stack.outputs.values():
        assert value in text

    monkeypatch.setattr("sys.stdin", InteractiveInput("y\n"))
    monkeypatch.setattr("tune_rescon.clusters.cluster.submission_id", lambda *_: "j-1")
    ended = (Job(id="j-1", status="SUCCEEDED", message=""),)
    fake_ray.answers = {
        "get-head-ip": [NO_HEAD, Completed(code=0, output="10.0.0.1\n")],
        "inspect": [inspect_output(0, ended)],
    }
    assert main(up) == 0
    assert fake_ray.commands_with("up --log") == ["up --log-style pretty -y --no-config-cache cluster.yaml"]
    assert main(submit) == 0
    (job,) = fake_ray.commands_with("ray job submit")
    assert job.endswith("--name first --space att92 --trials 64'")


def other_aws_lines() -> list[str]:
    return [
        line
        for line in command_lines("docs/howto/cluster.md")
        if line.startswith("aws ") and " deploy " not in line
    ]


def test_the_pages_other_aws_commands_exist() -> None:
    assert len(other_aws_lines()) == 2
    for line in [*other_aws_lines(), *re.findall(r"`(aws [^`]+)`", PAGES["docs/howto/cluster.md"])]:
        if line != "aws configure":
            check_aws_line(line)


def s3_request(method: str, path: str) -> Request:
    """Return the authorization request of an S3 request."""
    bucket, _, key = path.lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    if not key:
        # A POST to the bucket deletes several keys.
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "POST": "DeleteObject"}.get(method, "no")
        return Request(action=f"s3:{action}", resource=f"{resource}/*" if method == "POST" else resource)
    actions = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}
    return Request(action=f"s3:{actions.get(method, 'DeleteObject')}", resource=resource)


@pytest.mark.s3
def test_worker_role_allows_every_bucket_request_of_search_and_mlflow(s3: S3Server, account: Path) -> None:
    # Imported here: the import takes seconds.
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    stack = deploy("one", REGION)
    worker = stack.worker  # asked for before requests are rejected
    requests: list[Request] = []

    def should_reject(method: str, path: str) -> bool:
        requests.append(s3_request(method, path))
        return not allows(worker, requests[-1])

    s3.should_reject = should_reject
    try:
        folder = RemoteFolder.connect(StorageUrl(url=f"s3://{stack['Bucket']}/tune_rescon"))
        folder.write("a/best.yaml", b"x")
        assert folder.read("a/best.yaml") == b"x"
        large = account / "large"
        large.write_bytes(bytes(9 << 20))
        folder.upload(large, "a/large")
        assert folder.create("lease", b"1")
        assert "a/large" in folder.names()
        assert folder.folders_with("best.yaml") == ["a"]
        for name in ("a/large", "a/best.yaml"):
            folder.delete(name)
        artifacts: Any = S3ArtifactRepository(f"s3://{stack['Bucket']}/mlflow/artifacts")
        artifacts.log_artifact(str(large))
        assert [one.path for one in artifacts.list_artifacts()] == ["large"]
        assert Path(artifacts.download_artifacts("large")).stat().st_size == 9 << 20
        artifacts.delete_artifacts()
    finally:
        s3.should_reject = accept_all
    assert s3.rejected == 0, [one for one in requests if not allows(worker, one)]
    assert {one.action for one in requests} == {
        "s3:ListBucket",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
    }
