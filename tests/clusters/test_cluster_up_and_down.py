"""`up` and `down` with a fake of Ray's command line: the commands that run, and the printed output."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.clusters.conftest import NO_HEAD, FakeRay, InspectOutput
from tune_rescon.cluster import main
from tune_rescon.clusters import Finding, check
from tune_rescon.clusters.check import check_file
from tune_rescon.clusters.commands import Completed
from tune_rescon.errors import ClusterError

HEAD = Completed(code=0, output="Some words first.\n10.0.0.1\n")

#: The real function, which the fixture `findings` replaces.
CHECK_FILE = check_file


@pytest.fixture(autouse=True)
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings of `check`."""
    findings: list[Finding] = []
    monkeypatch.setattr(check, "check_file", lambda _path: findings)
    return findings


def test_up_starts_a_new_cluster_and_counts_its_workers(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {
        "get-head-ip": [NO_HEAD],
        "inspect": [
            Completed(code=1, output="ssh: refused"),
            inspect_output(0),
            inspect_output(1),
            inspect_output(1),
            inspect_output(2),
        ],
    }
    assert main(["up", str(file), "--yes"]) == 0
    assert fake_ray.commands_with("up --log") == [f"up --log-style pretty -y --no-config-cache {file}"]
    assert capsys.readouterr().out.splitlines() == [
        "0 of 2 workers are there",
        "1 of 2 workers are there",
        "2 of 2 workers are there",
        "lab is up: its head, and 2 workers (at least 2 were to come)",
    ]


@pytest.mark.parametrize(
    ("ray_runs", "variable", "state_kept"),
    [("yes", "RAY_TMPDIR", True), ("no", "RAY_TMPDIR", False), ("no", "TMPDIR", False)],
)
def test_restarted_machines_are_set_up_again(
    ray_runs: str,
    variable: str,
    state_kept: bool,
    fake_ray: FakeRay,
    inspect_output: InspectOutput,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    state = tmp_path / "ray" / "cluster-lab.state"
    state.parent.mkdir()
    state.write_text("{}")
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "inspect": [inspect_output(2)],
        "ray status": [Completed(code=0, output=f"ray: {ray_runs}\n")],
    }
    assert main(["up", str(file), "--yes"]) == 0
    assert state.exists() == state_kept


def test_a_running_cluster_is_not_restarted(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "gcs_server": [Completed(code=0, output="motd\nray: yes\n")],
        "inspect": [inspect_output(2)],
    }
    assert main(["up", str(file), "--yes"]) == 0
    assert fake_ray.commands_with("up --log") == [
        f"up --log-style pretty -y --no-config-cache --no-restart {file}"
    ]
    assert "its jobs continue" in capsys.readouterr().out


def test_a_cloud_that_does_not_answer_is_not_taken_for_a_cluster_without_a_head(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ray up` would restart Ray on a head that runs, and end its jobs."""
    fake_ray.answers = {"get-head-ip": [Completed(code=1, output="ClientError: RequestLimitExceeded\n")]}
    assert main(["up", str(file), "--yes"]) == 1
    assert fake_ray.commands_with("up --log") == []
    assert "whether lab has a head: ClientError: RequestLimitExceeded" in capsys.readouterr().err


def test_a_cluster_whose_resource_group_on_azure_does_not_exist_yet_is_started(
    fake_ray: FakeRay, file: Path
) -> None:
    """`ray up` creates the group; before that, `ray get-head-ip` cannot list its machines."""
    error = "ResourceNotFoundError: (ResourceGroupNotFound) Resource group 'lab' could not be found.\n"
    fake_ray.answers = {
        "get-head-ip": [Completed(code=1, output=error)],
        "up --log": [Completed(code=1)],
    }
    assert main(["up", str(file), "--yes"]) == 1
    assert fake_ray.commands_with("up --log") == [f"up --log-style pretty -y --no-config-cache {file}"]


def test_a_head_without_ray_is_started(fake_ray: FakeRay, inspect_output: InspectOutput, file: Path) -> None:
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "gcs_server": [Completed(code=0, output="ray: no\n")],
        "inspect": [inspect_output(2)],
    }
    assert main(["up", str(file), "--yes"]) == 0
    assert fake_ray.commands_with("up --log") == [f"up --log-style pretty -y --no-config-cache {file}"]


def test_a_head_of_unknown_status_is_restarted_only_on_request(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The error quotes the command, which contains both answers.
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "gcs_server": [
            Completed(code=1, output="failed: ssh ... then echo ray: yes; else echo ray: no; fi\n")
        ],
        "inspect": [inspect_output(2)],
    }
    assert main(["up", str(file), "--yes"]) == 1
    assert fake_ray.commands_with("up --log") == []
    assert "give --restart" in capsys.readouterr().err
    assert main(["up", str(file), "--yes", "--restart"]) == 0
    assert fake_ray.commands_with("up --log") == [f"up --log-style pretty -y --no-config-cache {file}"]


def test_too_few_workers_are_a_failure_with_their_count(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "inspect": [inspect_output(1)]}
    assert main(["up", str(file), "--yes", "--wait", "0.05"]) == 1
    assert "1 of 2 workers came within 0.05 s" in capsys.readouterr().err


def test_a_head_that_never_answers_is_a_failure(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {
        "get-head-ip": [NO_HEAD],
        "inspect": [Completed(code=1, output="ssh: no route\n")],
    }
    assert main(["up", str(file), "--yes", "--wait", "0.05"]) == 1
    stderr = capsys.readouterr().err
    assert "The head of lab returned no status: ssh: no route" in stderr


def test_a_failed_ray_up_is_reported(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "up --log": [Completed(code=1)]}
    assert main(["up", str(file), "--yes"]) == 1
    assert f"The command failed: `ray up` of {file} ended with code 1" in capsys.readouterr().err


def test_the_token_is_created_once_and_private_to_its_owner(
    fake_ray: FakeRay,
    inspect_output: InspectOutput,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cluster file mounts the local token on the nodes."""
    file.write_text(file.read_text() + "file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}\n")
    token = tmp_path / "new" / "token"
    token.parent.mkdir()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "inspect": [inspect_output(2)]}
    assert main(["up", str(file), "--yes"]) == 1
    assert fake_ray.commands_with("get-auth-token --generate")
    assert fake_ray.commands_with("up --log") == []
    token.write_text("t")
    token.chmod(0o644)
    fake_ray.commands.clear()
    assert main(["up", str(file), "--yes"]) == 0
    assert not fake_ray.commands_with("get-auth-token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_cluster_that_creates_its_token_needs_no_local_one(
    fake_ray: FakeRay,
    inspect_output: InspectOutput,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "inspect": [inspect_output(2)]}
    assert main(["up", str(file), "--yes"]) == 0
    assert not fake_ray.commands_with("get-auth-token")


def test_the_cost_is_shown_before_anything_is_started(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        "cluster_name: c\nprovider: {type: aws, region: us-west-2}\nhead_node_type: head\nmax_workers: 1\n"
        "available_node_types: {head: {node_config: {InstanceType: m7i.large}}}\n"
    )
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "up --log": [Completed(code=1)]}
    assert main(["up", str(file), "--yes"]) == 1
    assert capsys.readouterr().out.startswith(
        "At most 0.10 US dollars an hour for machines (1 x m7i.large 0.10;"
    )


def test_a_file_with_errors_starts_nothing(
    fake_ray: FakeRay, file: Path, findings: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    findings += [
        Finding(severity="warning", rule="w", text="may cost", line=3),
        Finding(severity="error", rule="e", text="is open", line=7),
    ]
    assert main(["up", str(file), "--yes"]) == 2
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"{file}:3: warning: may cost [w]", f"{file}:7: error: is open [e]"]
    assert f"Nothing was started: {file} has errors." in captured.err
    assert fake_ray.commands == []


def test_up_without_terminal_needs_yes(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", str(file)]) == 2
    assert "Give --yes where no terminal can ask." in capsys.readouterr().err
    assert fake_ray.commands == []


def test_check_accepts_several_files_and_warnings_are_no_error(
    file: Path, findings: list[Finding], capsys: pytest.CaptureFixture[str]
) -> None:
    findings.append(Finding(severity="warning", rule="w", text="may cost", line=3))
    assert main(["check", str(file), str(file)]) == 0
    assert capsys.readouterr().out == f"{file}:3: warning: may cost [w]\n" * 2


def test_check_reports_a_missing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "check_file", CHECK_FILE)
    assert main(["check", str(tmp_path / "nope.yaml")]) == 2
    assert "nope.yaml:1: error: cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["up", "submit", "status", "tunnel", "down"])
def test_a_missing_file_is_reported_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "nope.yaml"]) == 2
    stderr = capsys.readouterr().err
    assert stderr == "Error: FILE: must be a cluster's file, but got nope.yaml (No such file or directory).\n"


def test_down_ends_mlflow_before_the_cluster(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "mlflow --end": [Completed(code=0, output="MLflow has ended\n")],
    }
    assert main(["down", str(file)]) == 0
    assert [line.split()[0] for line in fake_ray.commands] == ["get-head-ip", "exec", "down"]
    assert "ends by itself within a minute" in capsys.readouterr().out


def test_down_continues_if_mlflow_cannot_be_ended(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {
        "get-head-ip": [HEAD],
        "mlflow --end": [Completed(code=1, output="ssh: no route\n")],
    }
    assert main(["down", str(file)]) == 0
    assert "MLflow was not ended first, so its last changes may not be kept: ssh: no route" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("hanging", ["get-head-ip", "mlflow --end"])
def test_down_ends_a_cluster_whose_head_hangs(
    hanging: str, fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"get-head-ip": [HEAD], hanging: [ClusterError("`ray` did not end within 180 s.")]}
    assert main(["down", str(file)]) == 0
    assert fake_ray.commands[-1].startswith("down ")
    assert "its last changes may not be kept: `ray` did not end" in capsys.readouterr().out


def test_down_lists_resources_that_a_cloud_may_keep(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("cluster_name: c\nprovider: {type: aws, region: us-west-2}\n")
    fake_ray.answers = {"get-head-ip": [NO_HEAD]}
    assert main(["down", str(file)]) == 0
    assert "stopped machines" in capsys.readouterr().out
    assert not fake_ray.commands_with("exec")
