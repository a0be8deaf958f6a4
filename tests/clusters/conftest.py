"""Fixtures: a fake of Ray's command line, modified cluster files, and an AWS account on moto."""

from __future__ import annotations

import shlex
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.clusters.aws import ANOTHER_REGION, REGION, TEMPLATE, client
from tests.clusters.broken_files import CheckBroken
from tests.conftest import ROOT, S3Server
from tune_rescon.clusters import Finding, check_file, cluster, status
from tune_rescon.clusters.commands import Command, Completed
from tune_rescon.clusters.status import HeadState, Job, Node

#: Makes the output of `inspect`, by its workers, jobs and exit code.
InspectOutput = Callable[..., Completed]

#: The answer of `ray get-head-ip` without a head.
NO_HEAD = Completed(code=1, output="RuntimeError: Head node of cluster (lab) not found!\n")

#: A cluster of two listed hosts.
CLUSTER_YAML = """
cluster_name: lab
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: root, ssh_private_key: ~/.ssh/id}
"""


@contextmanager
def served_once(answer: bytes) -> Iterator[str]:
    """Yield the URL of a server that answers one connection with these bytes, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@dataclass
class FakeRay:
    """Records Ray commands and answers them.

    ``answers`` maps a part of a command line to its answers, used in order. The last answer is repeated.
    """

    answers: dict[str, list[Completed | BaseException]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)

    def run(self, command: Command, *, capture: bool = False, timeout: float | None = None) -> Completed:
        assert timeout is None or capture
        assert command.argv[2:4] == ("-m", "ray.scripts.scripts")
        line = shlex.join(command.argv[4:])
        self.commands.append(line)
        for part, answers in self.answers.items():
            if part in line:
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if isinstance(answer, BaseException):
                    raise answer
                return answer
        return Completed(code=0)

    def commands_with(self, part: str) -> list[str]:
        return [line for line in self.commands if part in line]


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRay:
    fake = FakeRay()
    for module in (cluster, status):
        monkeypatch.setattr(module, "run", fake.run)
    monkeypatch.setattr(cluster, "PAUSE", 0.01)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "token").write_text("t")
    return fake


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER_YAML)
    return path


@pytest.fixture
def inspect_output() -> InspectOutput:
    """Makes the output of `inspect` in a login shell."""

    def make(workers: int = 0, jobs: tuple[Job, ...] = (), code: int = 0) -> Completed:
        nodes = [Node(name="10.0.0.1", type="head", alive=True, is_head=True, resources={})]
        nodes += [
            Node(name=f"10.0.0.{2 + n}", type="worker", alive=True, is_head=False, resources={"GPU": 1.0})
            for n in range(workers)
        ]
        nodes.append(Node(name="10.0.0.9", type="worker", alive=False, is_head=False, resources={}))
        state = HeadState(
            nodes=nodes, jobs=list(jobs), demands=["{'GPU': 1.0}: 3+ pending"], mlflow_answers=True
        )
        return Completed(
            code=code, output=f"bash: no job control\n{state.as_json()}\nShared connection closed.\n"
        )

    return make


@pytest.fixture(scope="session")
def ec2_model() -> None:
    """Load botocore's EC2 model once, because it takes seconds."""
    check_file(ROOT / "cluster.yaml")


@pytest.fixture
def image_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the shipped images, whatever version runs the tests."""
    monkeypatch.setattr("tune_rescon.clusters.shared_rules.our_python", lambda: "py311")


@pytest.fixture
def check_broken(ec2_model: None, image_python: None, tmp_path: Path) -> CheckBroken:
    """Checks a shipped file in which one text is replaced."""
    del ec2_model, image_python

    def check(name: str, old: str, new: str) -> list[Finding]:
        text = (ROOT / name).read_text()
        assert old in text
        path = tmp_path / Path(name).name
        path.write_text(text.replace(old, new, 1))
        return check_file(path)

    return check


@pytest.fixture
def account(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An AWS account without a stack; the current directory has the checkout's cluster files."""
    del s3
    (tmp_path / "cluster" / "aws").mkdir(parents=True)
    shutil.copy(TEMPLATE, tmp_path / "cluster" / "aws")
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for region in (REGION, ANOTHER_REGION):
        cloud = client("cloudformation", region)
        for stack in cloud.describe_stacks()["Stacks"]:
            cloud.delete_stack(StackName=stack["StackName"])
    iam = client("iam")
    with suppress(iam.exceptions.NoSuchEntityException):
        iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")
