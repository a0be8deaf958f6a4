"""The operator: writes a cluster's file out of a shipped one, and types the commands."""

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
    "Clock",
    "JobLog",
    "command",
    "open_ports_that_answer",
    "overlaid",
    "start",
    "status",
    "submitted",
    "wait_for",
]

_T = TypeVar("_T")

ROOT: Final = Path(__file__).resolve().parents[3]

#: Where Ray's job manager writes a job's output, in the head's /tmp.
_LOGS: Final = "ray/session_*/logs/job-driver-{identity}.log"

_EPOCH: Final = re.compile(r"trial_(\d+) epoch (\d+)/\d+:")


def overlaid(shipped: str, names: Mapping[str, str], change: Callable[[dict[str, Any]], None]) -> Path:
    """A cluster's file: a shipped one with its CHANGE names filled in, and then changed."""
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


def command(*arguments: str | Path, check: bool = True, timeout: float = 300) -> str:
    """``python -m tune_rescon...``, from the top of the checkout; what it said."""
    # Not in a new session, so that it ends with the namespaces.
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


def start(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """A command that is still running."""
    argv = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(argv, cwd=ROOT, env=_environment(), stdin=subprocess.DEVNULL)


def submitted(file: Path, *arguments: str) -> str:
    """Submit a search; its job's identity."""
    said = command("tune_rescon.cluster", "submit", file, "--no-follow", *arguments)
    return next(line.split()[1] for line in said.splitlines() if line.startswith("Job "))


def status(file: Path) -> dict[str, Any]:
    """The cluster as its head sees it."""
    said = command("tune_rescon.cluster", "status", file, "--json")
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    return found


def wait_for(
    what: str, look: Callable[[], _T], seconds: float, pause: float = 0.25, *, log: Path | None = None
) -> _T:
    """The first answer that is not false. ``log`` is a file that a failure shows."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        shown = log.read_text() if log is not None else ""
        assert time.monotonic() < end, f"no {what} within {seconds:g} s\n{shown}"
        time.sleep(pause)


def open_ports_that_answer(host: Host) -> list[str]:
    """The requests without a token that some port of a host answers which others can reach, and how.

    Ray's ports speak gRPC, refuse with 401, or have nothing at these paths.
    """
    sockets = host.run("ss -Hltn").stdout.splitlines()
    local = ("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")
    ports = {line.split()[3].rpartition(":")[2] for line in sockets if not line.split()[3].startswith(local)}
    assert ports >= {"22", "8076"}, sockets
    urls = [
        f"http://{host.address}:{port}{path}" for port in sorted(ports) for path in ("/metrics", "/api/jobs/")
    ]
    # All at once: a port that speaks gRPC keeps a request waiting.
    ask = "curl -s -m 5 -o /dev/null -w '%{{http_code}} {url}\\n' {url} &"
    said = host.run(" ".join(ask.format(url=url) for url in urls) + " wait").stdout
    return [line for line in said.splitlines() if line.startswith("2")]


@dataclass(frozen=True)
class JobLog:
    """What a search said that runs as a job."""

    head: Host
    identity: str

    def text(self) -> str:
        """All of it so far."""
        found = sorted((self.head.folder / "tmp").glob(_LOGS.format(identity=self.identity)))
        return found[-1].read_text(errors="replace") if found else ""

    def epochs(self) -> list[tuple[int, int]]:
        """(trial, epoch), in the order of their reports."""
        return [(int(trial), int(epoch)) for trial, epoch in _EPOCH.findall(self.text())]

    def wait_for(self, what: str, look: Callable[[], bool], seconds: float) -> None:
        """Wait until ``look`` sees it; what the job said otherwise."""
        try:
            wait_for(what, look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; the job said:\n{self.text()[-4000:]}") from None

    def wait_for_words(self, words: str, seconds: float) -> None:
        """Wait until it says them."""
        self.wait_for(repr(words), lambda: words in self.text(), seconds)

    def wait_for_epochs(self, epochs: Collection[tuple[int, int]], seconds: float) -> None:
        """Wait until all of them, (trial, epoch), are reported."""
        self.wait_for(f"epochs {epochs}", lambda: set(epochs) <= set(self.epochs()), seconds)


@dataclass
class Clock:
    """Seconds that the phases of a story took."""

    phases: dict[str, float] = field(default_factory=dict)

    def note(self, phase: str, since: float) -> None:
        """``since``: of time.monotonic."""
        self.phases[phase] = time.monotonic() - since

    def table(self, title: str) -> str:
        """As markdown."""
        rows = [f"| {phase} | {seconds:.1f} |" for phase, seconds in self.phases.items()]
        return "\n".join([f"| {title} | seconds |", "|---|---|", *rows])
