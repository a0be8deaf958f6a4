"""From an AWS account to a cluster: the pages' four commands on moto, and the bucket in the workers' use."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.aws import REGION, ROOT, TEMPLATE, Request, Stack, allows, check_aws_line, deploy
from tests.conftest import S3Server, never
from tune_rescon.__main__ import main
from tune_rescon.clusters.commands import Done
from tune_rescon.clusters.head import Job
from tune_rescon.storage.remote import RemoteFolder, StorageUrl

SHIPPED = (ROOT / "cluster.yaml").read_text()
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "docs/howto/cluster.md")}


def command_lines(page: str) -> list[str]:
    """The commands of a page's indented blocks below the title `A GPU cluster`, each as it stands there."""
    _, _, section = PAGES[page].partition("# A GPU cluster\n")
    section = re.split(r"^## (?!Ask|What it costs|The stack)", section, flags=re.MULTILINE)[0]
    blocks = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    return re.sub(r"\\\n\s*", "", "\n".join(blocks)).splitlines()


def words_of(line: str) -> list[str]:
    """A command's words as a shell makes them, with an address of the operator's."""
    shell = "aws() { printf '%s\\0' aws \"$@\"; }; tune-rescon() { printf '%s\\0' tune-rescon \"$@\"; }\n"
    shell += "curl() { echo 203.0.113.7; }\n"
    done = subprocess.run(["bash", "-c", shell + line], capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("\0").split("\0")


def aws_deploys(words: list[str]) -> Stack:
    """What `aws cloudformation deploy` does with a new stack."""
    assert words[:3] == ["aws", "cloudformation", "deploy"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    for option in ("--stack-name", "--template-file", "--capabilities"):
        parser.add_argument(option, required=True)
    parser.add_argument("--parameter-overrides", nargs="+", default=[])
    given = parser.parse_args(words[3:])
    assert Path(given.template_file).read_text() == TEMPLATE.read_text()
    # Roles need it; names of one's own, which would need more, no resource has.
    assert given.capabilities == "CAPABILITY_IAM"
    parameters = dict(word.split("=", 1) for word in given.parameter_overrides)
    pattern = re.search(r"AllowedPattern: '(.*)'", TEMPLATE.read_text())
    assert pattern is not None
    assert re.fullmatch(pattern[1], parameters["SshFrom"])
    return deploy(given.stack_name, REGION, **parameters)


def test_both_pages_have_the_same_four_commands() -> None:
    readme, howto = ([shlex.split(line, comments=True) for line in command_lines(page)][:4] for page in PAGES)
    assert readme == howto
    assert [words[:3] for words in howto] == [
        ["aws", "cloudformation", "deploy"],
        ["tune-rescon", "cluster", "configure"],
        ["tune-rescon", "cluster", "up"],
        ["tune-rescon", "cluster", "submit"],
    ]
    assert not any("..." in line for page in PAGES for line in command_lines(page))


class Terminal(StringIO):
    """A person who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.s3
@pytest.mark.parametrize("page", PAGES)
def test_the_pages_four_commands_configure_start_and_submit(
    page: str,
    account: Path,
    played: Any,
    stands: Callable[..., Done],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed, *ours = (words_of(line) for line in command_lines(page)[:4])
    stack = aws_deploys(deployed)
    configure, up, submit = (words[1:] for words in ours)
    assert main(configure) == 0
    said = capsys.readouterr().out
    changed = [line for line in said.splitlines() if " -> " in line]
    marked = [line for line in SHIPPED.splitlines() if "# CHANGE" in line]
    assert len(changed) == len(marked) == 5

    # What `up` checks first: not one warning is left.
    assert main(["cluster", "check", "cluster.yaml"]) == 0
    assert capsys.readouterr().out == ""
    text = (account / "cluster.yaml").read_text()
    for value in stack.outputs.values():
        assert value in text

    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    monkeypatch.setattr("tune_rescon.clusters.cluster.submission_id", lambda *_: "j-1")
    ended = (Job(id="j-1", status="SUCCEEDED", message=""),)
    played.answers = {
        "get-head-ip": [Done(code=1), Done(code=0, output="10.0.0.1\n")],
        "inspect": [stands(0, ended)],
    }
    assert main(up) == 0
    assert played.ran_with("up --log") == ["up --log-style pretty -y --no-config-cache cluster.yaml"]
    assert main(submit) == 0
    (job,) = played.ran_with("ray job submit")
    assert job.endswith("--name first --space att92 --trials 64'")


def aws_lines() -> list[str]:
    return [
        line
        for line in command_lines("docs/howto/cluster.md")
        if line.startswith("aws ") and " deploy " not in line
    ]


def test_the_pages_other_aws_commands_exist() -> None:
    assert len(aws_lines()) == 2
    for line in [*aws_lines(), *re.findall(r"`(aws [^`]+)`", PAGES["docs/howto/cluster.md"])]:
        if line != "aws configure":
            check_aws_line(line)


def asked(method: str, path: str) -> Request:
    """What S3 asks IAM for, by the method and path of a request."""
    bucket, _, key = path.lstrip("/").partition("/")
    resource = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    if not key:
        # Several keys are deleted by a POST to the bucket.
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "POST": "DeleteObject"}.get(method, "no")
        return Request(action=f"s3:{action}", resource=f"{resource}/*" if method == "POST" else resource)
    actions = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}
    return Request(action=f"s3:{actions.get(method, 'DeleteObject')}", resource=resource)


@pytest.mark.s3
def test_worker_role_allows_every_bucket_request_of_search_and_mlflow(s3: S3Server, account: Path) -> None:
    # Imported here: it takes seconds.
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    stack = deploy("one", REGION)
    seen: list[Request] = []

    def refuses(method: str, path: str) -> bool:
        seen.append(asked(method, path))
        return not allows(stack.worker, seen[-1])

    s3.refuses = refuses
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
        s3.refuses = never
    assert s3.refused == 0, [one for one in seen if not allows(stack.worker, one)]
    assert {one.action for one in seen} == {
        "s3:ListBucket",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
    }
