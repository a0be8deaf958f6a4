"""Ray's command lines, as values: what is run, with which environment. :func:`run` runs one.

Ray's launcher is run as a program: its functions print, prompt and end the process they are in.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import psutil

from tune_rescon.clusters.cluster_file import ClusterFile
from tune_rescon.errors import ClusterError, ClusterFileError, format_error
from tune_rescon.passwords import has_password

__all__ = [
    "DASHBOARD_PORT",
    "MLFLOW_PORT",
    "RAY_IS_HERE",
    "Command",
    "Done",
    "end_mlflow_words",
    "follow_words",
    "inspect_words",
    "make_token",
    "ray_down",
    "ray_exec",
    "ray_status",
    "ray_up",
    "run",
    "search_job",
    "ssh_tunnel",
    "stop_words",
    "submission_id",
    "where_is_head",
]

#: Of the server on the head, where nobody else reaches it.
MLFLOW_URI: Final = "http://127.0.0.1:5000"

#: The head's MLflow and Ray's dashboard, on its loopback.
MLFLOW_PORT: Final = 5000
DASHBOARD_PORT: Final = 8265

#: In a shell on the head: whether Ray runs there, in words, for a failing ssh must not be taken for a no. One
#: that is there and does not answer counts as there: starting it anew would end its jobs.
RAY_IS_HERE: Final = (
    "if ray status >/dev/null 2>&1 || pgrep -x gcs_server >/dev/null;"
    " then echo ray: yes; else echo ray: no; fi"
)

#: What a terminal is told between the words.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

#: Of this Python, whatever a PATH says. -P: a directory that happens to be called ray is not meant.
_RAY: Final = (sys.executable, "-P", "-m", "ray.scripts.scripts")

#: Without it Ray takes one that reads no terminal for a program, and quotes its own command lines to it.
_PLAIN: Final = ("--log-style", "pretty")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, and what its environment has beside this process's."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended; what it said, if that was asked for."""

    code: int
    said: str = ""

    @property
    def last_words(self) -> str:
        """The last few lines it said, for an error's text: of a traceback, its end.

        >>> Done(code=1, said="a\\n\\nTraceback (most recent call last):\\n  File x\\nOSError: no").last_words
        'a / OSError: no'
        """
        plain = [_COLOUR.sub("", line).rstrip() for line in self.said.splitlines()]
        lines = [line for line in plain if line and not line.startswith((" ", "\t", "Traceback "))]
        return " / ".join(lines[-3:]) or "it said nothing"


def run(command: Command, *, listen: bool = False, timeout: float | None = None) -> Done:
    """Run a command to its end: in this terminal, or, to ``listen``, with what it says kept for the caller.

    It reads no terminal: Ctrl-C ends it here, and is not sent to the other side of an ssh. None of its
    processes stays behind when this is left.

    Raises:
        ClusterError: it cannot be run, or did not end in time.
    """
    try:
        process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if listen else None,
            stderr=subprocess.STDOUT if listen else None,
        )
    except OSError as error:
        raise ClusterError(f"`{command.argv[0]}` cannot be run: {error.strerror}.") from None
    try:
        said, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            words = f"`{shlex.join(command.argv)}` did not end within {timeout:g} s."
            raise ClusterError(words) from None
        raise
    # A pseudo-terminal on the head ends its lines with a carriage return too.
    return Done(code=process.returncode, said=(said or b"").decode(errors="replace").replace("\r\n", "\n"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with the ssh it has started, which would go on by itself."""
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
        for one in below:
            with suppress(psutil.Error):
                one.kill()
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def ray_up(cluster: ClusterFile, *, restart: bool) -> Command:
    """Start or update a cluster. ``restart`` Ray on a head that has it, which ends its jobs."""
    # A cached configuration outlives what it was made from.
    options = ["-y", "--no-config-cache", *([] if restart else ["--no-restart"])]
    return _ray(cluster, "up", *_PLAIN, *options, str(cluster.path))


def ray_exec(cluster: ClusterFile, words: str) -> Command:
    """Run a line of shell on the head."""
    # The head's login shell need not know the mode.
    return _ray(cluster, "exec", *_PLAIN, str(cluster.path), f"export RAY_AUTH_MODE=token; {words}")


def ray_down(cluster: ClusterFile) -> Command:
    """End a cluster."""
    return _ray(cluster, "down", *_PLAIN, "-y", str(cluster.path))


def where_is_head(cluster: ClusterFile) -> Command:
    """Print the head's address; fails where there is no head."""
    return _ray(cluster, "get-head-ip", str(cluster.path))


def ray_status() -> Command:
    """Print what the autoscaler knows; for the head itself."""
    return Command(argv=(*_RAY, "status"), env={"RAY_AUTH_MODE": "token"})


def make_token(cluster: ClusterFile) -> Command:
    """Make the secret of token mode, unless there is one. It is printed, too."""
    return _ray(cluster, "get-auth-token", "--generate")


def search_job(
    identity: str,
    arguments: Sequence[str],
    *,
    flag: str | None,
    name: str | None,
    module: str = "tune_rescon.search",
) -> str:
    """The line for the head's shell that submits a search as a job; ``flag`` is --name or --resume.

    What ``arguments`` say goes before what is said here, for it comes last. ``module``: the command it is.

    Raises:
        ClusterFileError: an argument holds a password. Ray keeps a job's line, logs it and shows it.

    >>> search_job("a-1", ["--space", "my space"], flag="--name", name="a").partition(" -- ")[2]
    "python -m tune_rescon.search --address auto --plain --tracking-uri http://127.0.0.1:5000 --name a \
--space 'my space'"
    """
    for argument in arguments:
        if has_password(argument):
            rule = "a job's command line must hold no password: Ray keeps it and shows it on its dashboard"
            hint = (
                "Export TUNE_RESCON_STUDY or TUNE_RESCON_TRACKING_URI on the head before `ray start`"
                " (head_start_ray_commands in the cluster's file): jobs inherit them."
            )
            raise ClusterFileError(format_error(rule, got=argument, hint=hint))
    search = ["python", "-m", module, "--address", "auto", "--plain"]
    search += ["--tracking-uri", MLFLOW_URI]
    if flag is not None and name is not None:
        search += [flag, name]
    # One joining is for the head's shell; `ray job submit` joins its words again for the job's.
    submit = ["ray", "job", "submit", *_jobs_address(), "--submission-id", identity, "--no-wait"]
    return shlex.join([*submit, "--", *search, *arguments])


def follow_words(identity: str) -> str:
    """The line for the head's shell that prints a job's log until the job ends."""
    return shlex.join(["ray", "job", "logs", *_jobs_address(), "--follow", identity])


def stop_words(identity: str) -> str:
    """The line for the head's shell that ends a job."""
    return shlex.join(["ray", "job", "stop", *_jobs_address(), identity])


def inspect_words() -> str:
    """The line for the head's shell that prints what the head knows, as JSON."""
    return "python -m tune_rescon.cluster inspect --json"


def end_mlflow_words() -> str:
    """The line for the head's shell that ends the MLflow server, once its database is kept."""
    return "python -m tune_rescon.cluster mlflow --end"


def submission_id(name: str | None, now: datetime) -> str:
    """A job's identity: a search is resumed under its name, and every job has its own.

    >>> submission_id("first", datetime(2026, 1, 2, 3, 4, 5))
    'first-20260102-030405'
    """
    return f"{name or 'search'}-{now:%Y%m%d-%H%M%S}"


def ssh_tunnel(cluster: ClusterFile, head: str, ports: Mapping[int, int], keys: Sequence[Path]) -> Command:
    """Hold ports of this machine open to the head's loopback: ``ports`` maps one here to one there."""
    options = {
        # Hosts of a cloud have a new key under an old address; Ray does not ask either.
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ExitOnForwardFailure": "yes",
        "ServerAliveInterval": "15",
        "ServerAliveCountMax": "4",
        "ConnectTimeout": "30",
        "BatchMode": "yes",
    }
    if keys:
        # An agent's many keys would use up the tries a server allows.
        options["IdentitiesOnly"] = "yes"
    if cluster.ssh_proxy_command:
        options["ProxyCommand"] = cluster.ssh_proxy_command
    argv = ["ssh", "-N", "-T"]
    for key in keys:
        argv += ["-i", str(key)]
    for option, value in options.items():
        argv += ["-o", f"{option}={value}"]
    for here, there in ports.items():
        argv += ["-L", f"127.0.0.1:{here}:127.0.0.1:{there}"]
    return Command(argv=(*argv, f"{cluster.ssh_user}@{head}"))


def _ray(cluster: ClusterFile, *words: str) -> Command:
    env = {"RAY_AUTH_MODE": "token"}
    if cluster.provider == "local":
        # The second autoscaler counts the head as one of the workers of a list of hosts.
        env["RAY_UP_enable_autoscaler_v2"] = "0"
    return Command(argv=(*_RAY, *words), env=env)


def _jobs_address() -> list[str]:
    return ["--address", f"http://127.0.0.1:{DASHBOARD_PORT}"]
