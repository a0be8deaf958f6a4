"""`submit` and `status` with a fake of Ray's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.conftest import FakeRay, InspectOutput
from tune_rescon.cluster import main
from tune_rescon.clusters.commands import Completed
from tune_rescon.clusters.status import (
    HeadState,
    Job,
    inspect_head,
    parse_demands,
    parse_jobs,
    parse_nodes,
)


@pytest.fixture(autouse=True)
def fixed_submission_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.clusters.cluster.submission_id", lambda *_: "j-1")


def job(status: str, message: str = "") -> tuple[Job, ...]:
    return (Job(id="j-0", status="FAILED"), Job(id="j-1", status=status, message=message))


def test_a_submitted_search_is_followed_until_it_succeeds(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"inspect": [inspect_output(jobs=job("SUCCEEDED"))]}
    assert main(["submit", str(file), "--name", "a", "--", "--space", "digits", "--trials", "3"]) == 0
    assert len(fake_ray.commands) == 3
    assert (
        "--submission-id j-1 --no-wait -- python -m tune_rescon.search --address auto" in fake_ray.commands[0]
    )
    assert "--name a --space digits --trials 3" in fake_ray.commands[0]
    assert "ray job logs --address http://127.0.0.1:8265 --follow j-1" in fake_ray.commands[1]
    assert capsys.readouterr().out == "Job j-1 runs on lab\n"


def test_finals_are_submitted_too(fake_ray: FakeRay, inspect_output: InspectOutput, file: Path) -> None:
    fake_ray.answers = {"inspect": [inspect_output(jobs=job("SUCCEEDED"))]}
    assert main(["submit", str(file), "--train", "--", "--from", "a", "--top", "2"]) == 0
    assert "-- python -m tune_rescon.train --address auto --plain" in fake_ray.commands[0]
    assert "--from a --top 2" in fake_ray.commands[0]


def test_submit_fails_if_the_job_failed(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"inspect": [inspect_output(jobs=job("FAILED", "It ended with code 2."))]}
    assert main(["submit", str(file)]) == 1
    assert "job j-1 has ended as FAILED. It ended with code 2." in capsys.readouterr().err


def test_the_job_is_not_followed_with_no_follow(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(file), "--resume", "a", "--no-follow"]) == 0
    assert len(fake_ray.commands) == 1
    assert "--resume a" in fake_ray.commands[0]
    stdout = capsys.readouterr().out
    assert "Follow it: ray exec " in stdout
    assert "ray job stop --address http://127.0.0.1:8265 j-1" in stdout


def test_resume_or_start_is_submitted_with_the_space(fake_ray: FakeRay, file: Path) -> None:
    arguments = ["submit", str(file), "--resume-or-start", "a", "--no-follow", "--", "--space", "digits"]
    assert main(arguments) == 0
    assert "--resume-or-start a --space digits" in fake_ray.commands[0]


def test_after_an_interrupt_the_commands_to_follow_and_stop_are_shown(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"job logs": [KeyboardInterrupt()]}
    assert main(["submit", str(file)]) == 130
    stdout = capsys.readouterr().out
    assert "The job continues.\nFollow it: ray exec" in stdout


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_down_ends_the_cluster_whether_the_job_failed_or_not(
    state: str,
    code: int,
    fake_ray: FakeRay,
    inspect_output: InspectOutput,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_ray.answers = {
        "inspect": [inspect_output(jobs=job(state))],
        "get-head-ip": [Completed(code=0, output="10.0.0.1\n")],
    }
    assert main(["submit", str(file), "--down"]) == code
    assert f"Job j-1 has ended as {state}: lab is ended" in capsys.readouterr().out
    assert [line.split()[0] for line in fake_ray.commands[-3:]] == ["get-head-ip", "exec", "down"]
    assert "mlflow --end" in fake_ray.commands[-2]


@pytest.mark.parametrize(
    ("answers", "code", "message"),
    [
        ({"job logs": [KeyboardInterrupt()]}, 130, "The job continues. So does the cluster: end it by"),
        (
            {"inspect": [Completed(code=1, output="ssh: no route\n")]},
            1,
            "lab was not ended, because its job was not",
        ),
        ({"job submit": [Completed(code=1, output="401\n")]}, 1, ""),
    ],
)
def test_down_keeps_the_cluster_if_the_jobs_end_was_not_seen(
    answers: dict[str, Any],
    code: int,
    message: str,
    fake_ray: FakeRay,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_ray.answers = answers
    assert main(["submit", str(file), "--down"]) == code
    assert message in capsys.readouterr().out
    assert not [line for line in fake_ray.commands if line.startswith("down")]


def test_down_with_no_follow_is_refused(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(file), "--down", "--no-follow"]) == 2
    assert "--down waits for the job's end: leave out --no-follow." in capsys.readouterr().err
    assert fake_ray.commands == []


def test_the_log_is_followed_again_after_a_lost_connection(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = Completed(code=1, output="ssh: no route\n")
    fake_ray.answers = {
        "inspect": [down, inspect_output(jobs=job("RUNNING")), down, inspect_output(jobs=job("SUCCEEDED"))]
    }
    assert main(["submit", str(file)]) == 0
    assert len(fake_ray.commands_with("job logs")) == 4
    assert "the job continues: its log again" in capsys.readouterr().out


def test_a_lost_head_is_a_failure_that_shows_how_to_follow_the_job(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"inspect": [Completed(code=1, output="ssh: no route\n")]}
    assert main(["submit", str(file)]) == 1
    captured = capsys.readouterr()
    assert "Follow it: " in captured.out
    assert "ssh: no route" in captured.err


def test_a_rejected_submission_is_reported(
    fake_ray: FakeRay, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"job submit": [Completed(code=1, output="RuntimeError: 401\nSSH command failed.\n")]}
    assert main(["submit", str(file)]) == 1
    assert "did not take the job: RuntimeError: 401 / SSH command failed." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name", "a", "--resume", "a"], "Give one of --name and --resume."),
        (["--resume-or-start", "a", "--name", "a"], "Give one of --name and --resume-or-start."),
        (["--resume-or-start", "a", "--resume", "b"], "Give one of --resume and --resume-or-start."),
        (["--resume-or-start", "a", "--train"], "--resume-or-start is for a search: tune_rescon.train has"),
        (["--resume-or-start", "a b"], "--resume-or-start: must be letters, digits"),
        (["--resume", "a b"], "--resume: must be letters, digits"),
    ],
)
def test_bad_names_fail(
    flags: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", str(file), *flags]) == 2
    assert message in capsys.readouterr().err


def test_status_shows_nodes_jobs_and_mlflow(
    fake_ray: FakeRay, inspect_output: InspectOutput, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"inspect": [inspect_output(1, jobs=job("RUNNING"))]}
    assert main(["status", str(file)]) == 0
    stdout = capsys.readouterr().out
    for text in ("10.0.0.2", "1 GPU", "gone", "Job j-1: running", "Last ended: j-0, failed", "3+ pending"):
        assert text in stdout
    assert "MLflow answers." in stdout
    assert main(["status", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlflow_answers"] is True


#: A response of the dashboard of Ray 2.60.
DASHBOARD_NODES = {
    "data": {
        "result": {
            "result": [
                {
                    "node_ip": "10.0.0.2",
                    "is_head_node": False,
                    "state": "DEAD",
                    "resources_total": {},
                    "labels": {"ray.io/node-group": "gpu_a10g"},
                },
                {
                    "node_ip": "10.0.0.3",
                    "is_head_node": False,
                    "state": "ALIVE",
                    "resources_total": {
                        "CPU": 8.0,
                        "GPU": 1.0,
                        "accelerator_type:A10G": 1.0,
                        "memory": 3e10,
                        "object_store_memory": 8e7,
                        "node:10.0.0.3": 1.0,
                    },
                    "labels": {"ray.io/node-id": "6f"},
                },
                {
                    "node_ip": "10.0.0.1",
                    "is_head_node": True,
                    "state": "ALIVE",
                    "resources_total": {"node:__internal_head__": 1.0, "memory": 3e10},
                    "labels": None,
                },
            ]
        }
    }
}


def test_nodes_are_parsed_from_the_dashboards_response() -> None:
    head, alive, dead = parse_nodes(DASHBOARD_NODES)
    assert (head.is_head, head.type, dict(head.resources)) == (True, "head", {})
    assert (alive.name, alive.type, alive.accelerator) == ("10.0.0.3", "worker", "A10G")
    assert alive.resources == {"CPU": 8.0, "GPU": 1.0}
    assert (dead.alive, dead.type) == (False, "gpu_a10g")
    state = HeadState(nodes=[head, alive, dead], jobs=[], demands=[], mlflow_answers=False)
    assert state.workers == 1


def test_only_submitted_jobs_are_listed_newest_first() -> None:
    answer = [
        {"submission_id": "a", "status": "FAILED", "start_time": 1, "message": None, "entrypoint": "e"},
        {"submission_id": None, "status": "RUNNING", "start_time": 3},
        {"submission_id": "b", "status": "PENDING", "start_time": 2},
    ]
    found = parse_jobs(answer)
    assert [(one.id, one.is_active) for one in found] == [("b", True), ("a", False)]


@pytest.mark.parametrize(
    ("text", "demands"),
    [
        ("", []),
        ("No cluster status. It may take a few seconds.", []),
        ("Total Demands:\n {'x': 1}\n", []),
        (
            "Demands:\n {'GPU': 1.0}: 3+ a\n {'CPU': 1.0}: 1+ b\n\n x\n",
            ["{'GPU': 1.0}: 3+ a", "{'CPU': 1.0}: 1+ b"],
        ),
        ("Pending Demands:\n {'GPU': 1.0}: 3+ a", ["{'GPU': 1.0}: 3+ a"]),
        ("Demands:\n (no resource demands)\n", []),
    ],
)
def test_demands_are_parsed_from_either_autoscalers_text(text: str, demands: list[str]) -> None:
    assert parse_demands(text) == demands


def test_demands_are_unknown_if_ray_status_fails(
    fake_ray: FakeRay, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The nodes and jobs come from the dashboard, so they are shown all the same."""
    answers = {"nodes": DASHBOARD_NODES, "jobs": []}
    monkeypatch.setattr(
        "tune_rescon.clusters.status._request_json",
        lambda url: answers["nodes" if "nodes" in url else "jobs"],
    )
    fake_ray.answers = {"status": [Completed(code=1, output="RpcError: timed out\n")]}
    state = inspect_head()
    assert (state.workers, state.demands) == (1, [])
    fake_ray.answers = {"inspect": [Completed(code=0, output=state.as_json())]}
    assert main(["status", str(file)]) == 0
    stdout = capsys.readouterr().out
    assert "Waits for resources: unknown. `ray status` ended with code 1: RpcError: timed out" in stdout


def test_the_state_of_an_earlier_versions_head_is_read() -> None:
    state = HeadState(nodes=[], jobs=[], demands=[], mlflow_answers=True)
    output = json.loads(state.as_json())
    del output["demands_problem"]
    assert HeadState.parse(json.dumps(output)) == state


@pytest.mark.parametrize(
    "output", ["", "no JSON", '{"nodes": ', '{"nodes": []}', '{"nodes": [{"x": 1}], "jobs": []}']
)
def test_output_without_a_state_is_none(output: str) -> None:
    assert HeadState.parse(output) is None
