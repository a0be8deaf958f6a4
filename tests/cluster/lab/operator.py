"""The operator: writes a cluster file from a shipped one, and runs the commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from ruamel.yaml import YAML

from tests.cluster.enclosed import LAB
from tests.cluster.lab.cloud import CREDENTIALS
from tests.cluster.lab.hosts import Host

__all__ = [
    "ROOT",
    "JobLog",
    "PhaseTimer",
    "cluster_status",
    "open_ports_that_answer",
    "run_command",
    "start_command",
    "submit_search",
    "wait_for",
    "write_cluster_file",
]

_T = TypeVar("_T")

ROOT: Final = Path(__file__).resolve().parents[3]

#: The log file of a job in the head's ``/tmp``, written by Ray's job manager.
_LOGS: Final = "ray/session_*/logs/job-driver-{identity}.log"

_EPOCH: Final = re.compile(r"trial_(\d+) epoch (\d+)/\d+:")


def write_cluster_file(
    shipped: str, names: Mapping[str, str], change: Callable[[dict[str, Any]], None]
) -> Path:
    """Fill in the placeholders of a shipped cluster file, apply ``change`` to it, and write it."""
    text = (ROOT / shipped).read_text()
    for name, value in names.items():
        assert name in text, f"{shipped} has no {name}"
        text = text.replace(name, value)
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    cluster = yaml.load(text)
    change(cluster)
    path = LAB / "operator" / "home" / Path(shipped).name
    with path.open("w") as file:
        yaml.dump(cluster, file)
    return path


def run_command(*arguments: str | Path, check: bool = True, timeout: float = 300) -> str:
    """Run ``python -m ...`` in the root of the checkout and return its output."""
    # The command stays in this session, so that it ends with the namespaces.
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=_environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, f"{arguments} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, **CREDENTIALS, "RAY_USAGE_STATS_ENABLED": "0"}


def start_command(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Start ``python -m ...`` and return the running process."""
    argv = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(argv, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL)


def submit_search(file: Path, *arguments: str) -> str:
    """Submit a search and return the id of its job."""
    output = run_command("tune_rescon.cluster", "submit", file, "--no-follow", *arguments)
    return next(line.split()[1] for line in output.splitlines() if line.startswith("Job "))


def cluster_status(file: Path) -> dict[str, Any]:
    """Return the output of ``status --json``."""
    output = run_command("tune_rescon.cluster", "status", file, "--json")
    found: dict[str, Any] = json.loads(output[output.index("{") :])
    return found


def wait_for(
    description: str, poll: Callable[[], _T], seconds: float, pause: float = 0.25, *, log: Path | None = None
) -> _T:
    """Poll until a value is truthy and return it. A failure shows the file ``log``."""
    deadline = time.monotonic() + seconds
    while True:
        found = poll()
        if found:
            return found
        shown = log.read_text() if log is not None else ""
        assert time.monotonic() < deadline, f"no {description} within {seconds:g} s\n{shown}"
        time.sleep(pause)


def open_ports_that_answer(host: Host) -> list[str]:
    """Return the requests without a token that a public port of a host answers with a 2xx status.

    Ray's ports speak gRPC, answer 401, or have nothing at these paths.
    """
    sockets = host.run("ss -Hltn").stdout.splitlines()
    local = ("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")
    ports = {line.split()[3].rpartition(":")[2] for line in sockets if not line.split()[3].startswith(local)}
    assert ports >= {"22", "8076"}, sockets
    urls = [
        f"http://{host.address}:{port}{path}" for port in sorted(ports) for path in ("/metrics", "/api/jobs/")
    ]
    # The requests run in parallel, because a gRPC port leaves a request without an answer.
    curl = "curl -s -m 5 -o /dev/null -w '%{{http_code}} {url}\\n' {url} &"
    output = host.run(" ".join(curl.format(url=url) for url in urls) + " wait").stdout
    return [line for line in output.splitlines() if line.startswith("2")]


@dataclass(frozen=True)
class JobLog:
    """The output of a search that runs as a job."""

    head: Host
    identity: str

    def text(self) -> str:
        """Return the output so far."""
        found = sorted((self.head.folder / "tmp").glob(_LOGS.format(identity=self.identity)))
        return found[-1].read_text(errors="replace") if found else ""

    def epochs(self) -> list[tuple[int, int]]:
        """Return the reported (trial, epoch) pairs in order."""
        return [(int(trial), int(epoch)) for trial, epoch in _EPOCH.findall(self.text())]

    def wait_for(self, description: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until ``condition`` is true; a failure shows the job's output."""
        try:
            wait_for(description, condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; output of the job:\n{self.text()[-4000:]}") from None

    def wait_for_text(self, text: str, seconds: float) -> None:
        """Wait until the output contains ``text``."""
        self.wait_for(repr(text), lambda: text in self.text(), seconds)

    def wait_for_epochs(self, epochs: Collection[tuple[int, int]], seconds: float) -> None:
        """Wait until all of these (trial, epoch) pairs are reported."""
        self.wait_for(f"epochs {epochs}", lambda: set(epochs) <= set(self.epochs()), seconds)


@dataclass
class PhaseTimer:
    """Durations of the phases of a scenario, in seconds."""

    phases: dict[str, float] = field(default_factory=dict)

    def record(self, phase: str, since: float) -> None:
        """Record the seconds since ``since``, a value of ``time.monotonic``."""
        self.phases[phase] = time.monotonic() - since

    def table(self, title: str) -> str:
        """Return a Markdown table."""
        rows = [f"| {phase} | {seconds:.1f} |" for phase, seconds in self.phases.items()]
        return "\n".join([f"| {title} | seconds |", "|---|---|", *rows])
