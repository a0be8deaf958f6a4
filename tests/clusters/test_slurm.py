"""The whole ``cluster/slurm.sh``, with a Slurm and a Ray that record their calls."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LONGEST_WAIT, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "slurm.sh"

#: The programs on the nodes. `srun` runs its command once, as if the first node were the only one.
PROGRAMS = {
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        if [ "$1" = hostname ]; then echo "10.0.0.7 fe80::7"; else "$@"; fi
    """,
    "scontrol": """
        if [ "$1" = show ]; then printf 'node%s\\n' 1 2 3; fi
    """,
    "ray": """
        if [ -n "${NO_RAY:-}" ]; then exit "$NO_RAY"; fi
        while [ "$1" != -- ]; do shift; done
        shift
        "$@"
    """,
    "python": """
        if [ "$1" = -c ]; then exec "$PYTHON" "$@"; fi
        trap 'exit 130' TERM
        stat -c '%a %s' "$RAY_AUTH_TOKEN_PATH" > "$CALLS/token"
        touch "$CALLS/running"
        while [ -n "${ENDLESS:-}" ]; do sleep 0.02; done
        exit "${CODE:-0}"
    """,
}


class Job:
    """One allocation of three nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls_folder = folder / "calls"
        programs = folder / "submitted" / ".venv" / "bin"
        for made in (self.calls_folder, programs, folder / "home"):
            made.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            record = f'printf "%s\\n" "${{*@Q}}" >> "$CALLS/{name}"'
            (programs / name).write_text(f"#!/bin/bash\n{record}\n{text}")
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "CALLS": str(self.calls_folder),
            "HOME": str(folder / "home"),
            "SLURM_SUBMIT_DIR": str(folder / "submitted"),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "8",
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env={**self.environment, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        said, _ = process.communicate(timeout=LONGEST_WAIT)
        return process.returncode, said

    def calls(self, program: str) -> list[list[str]]:
        path = self.calls_folder / program
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def requeued(self) -> list[list[str]]:
        return [call for call in self.calls("scontrol") if call[0] == "requeue"]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_bash_parses_the_script() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_every_node_starts_ray_and_the_first_runs_the_search(job: Job) -> None:
    code, said = job.run("--space", "my space", "--resume-or-start", "first")
    assert (code, said) == (0, "")
    start = next(call for call in job.calls("srun") if "ray" in call)
    assert start[: start.index("ray")] == [
        *("--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60")
    ]
    ((_, *words),) = job.calls("ray")
    options = words[: words.index("--")]
    assert options[:3] == ["--address=10.0.0.7:21100", "--min-nodes=3", "--dashboard-host=127.0.0.1"]
    search = next(call for call in job.calls("python") if call[0] == "-m")
    assert search == [
        *("-m", "tune_rescon.search", "--plain", "--address=10.0.0.7:21100"),
        *("--space", "my space", "--resume-or-start", "first"),
    ]
    assert job.requeued() == []


def test_ports_are_distinct_and_in_the_jobs_range(job: Job) -> None:
    job.run()
    ((_, *words),) = job.calls("ray")
    given = dict(word.removeprefix("--").split("=", 1) for word in words[: words.index("--")])
    ports = {name: int(value) for name, value in given.items() if name.endswith("port")}
    assert len(ports) == 10
    assert len({*ports.values(), 21100}) == 11
    assert all(21100 <= port < 21200 for port in ports.values())
    (ray_start,) = (Path(sys.prefix) / "lib").glob("python3*/site-packages/ray/scripts/scripts.py")
    known = ray_start.read_text()
    assert [name for name in given if f'"--{name}"' not in known] == ["min-nodes"], "symmetric-run's own"


def test_the_token_is_private_and_the_job_leaves_no_files(job: Job) -> None:
    job.run()
    assert (job.calls_folder / "token").read_text() == "600 64\n"
    assert list((job.folder / "home").iterdir()) == []
    removal = job.calls("srun")[-1]
    assert removal[-3:] == ["rm", "-rf", "/tmp/tr-4711"]


@pytest.mark.parametrize("ray", ["0", "1"])
def test_the_job_fails_if_the_head_does_not_start_or_answer(ray: str, job: Job) -> None:
    """`ray symmetric-run` ends with 0 where `ray start` fails, and with 1 where the head does not answer."""
    code, said = job.run(NO_RAY=ray)
    assert code == 1
    assert "Ray did not start on node1" in said
    assert job.requeued() == []


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (130, False), (75, True)])
def test_the_job_exits_as_the_search_and_is_requeued_on_code_75(code: int, again: bool, job: Job) -> None:
    assert job.run(CODE=str(code))[0] == code
    assert job.requeued() == ([["requeue", "4711"]] if again else [])


@pytest.mark.parametrize(("sent", "again"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_stopped_search_is_requeued_only_if_its_time_was_up(
    sent: signal.Signals, again: bool, job: Job
) -> None:
    """A preempted job is queued again by Slurm, and a cancelled one is not."""
    process = job.start(ENDLESS="1")

    def runs() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return (job.calls_folder / "running").exists()

    wait_until(runs)
    process.send_signal(sent)
    said, _ = process.communicate(timeout=LONGEST_WAIT)
    assert process.returncode == 130, said
    assert job.requeued() == ([["requeue", "4711"]] if again else [])
    assert list((job.folder / "home").iterdir()) == []


def test_sbatch_options_request_requeueing_and_a_warning_signal() -> None:
    asked = [line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--exclusive", "--open-mode=append", "--signal=B:USR1@180"} <= set(asked)
