"""Ray's command lines and their environment, as values; :func:`run` runs one.

Ray's launcher is run as a program, because its functions print, prompt and end the current process.
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
from tune_rescon.errors import ClusterError, ClusterFileError, format_error, has_password

__all__ = [
    "DASHBOARD_PORT",
    "END_MLFLOW",
    "HEAD_TIMEOUT",
    "INSPECT",
    "IS_RAY_RUNNING",
    "MLFLOW_PORT",
    "Command",
    "Completed",
    "end_when_idle_command",
    "follow_command",
    "ray_down",
    "ray_exec",
    "ray_get_auth_token",
    "ray_get_head_ip",
    "ray_status",
    "ray_stop",
    "ray_up",
    "run",
    "ssh_tunnel",
    "stop_command",
    "submission_id",
    "submit_command",
]

#: The URI of the MLflow server on the head, which only the head can reach.
MLFLOW_URI: Final = "http://127.0.0.1:5000"

#: The ports of MLflow and of Ray's dashboard on the head's loopback interface.
MLFLOW_PORT: Final = 5000
DASHBOARD_PORT: Final = 8265

#: The option of `ray job` that names the head's dashboard.
_JOBS_ADDRESS: Final = ("--address", f"http://127.0.0.1:{DASHBOARD_PORT}")

#: Seconds that a command on the head may take, over ssh.
HEAD_TIMEOUT: Final = 180.0

#: A shell command for the head that prints whether Ray runs there. It prints words, because a failing ssh
#: must not be mistaken for a no. A Ray that does not answer counts as running, because a restart would end
#: its jobs.
IS_RAY_RUNNING: Final = (
    "if ray status >/dev/null 2>&1 || pgrep -x gcs_server >/dev/null;"
    " then echo ray: yes; else echo ray: no; fi"
)

#: Shell commands for the head: print its state as JSON; end its MLflow after a copy of the database.
INSPECT: Final = "python -m tune_rescon.cluster inspect --json"
END_MLFLOW: Final = "python -m tune_rescon.cluster mlflow --end"

#: Terminal colour codes in the output.
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

#: Ray of this Python, independent of PATH. With -P, a local directory named ray is not imported instead.
_RAY: Final = (sys.executable, "-P", "-m", "ray.scripts.scripts")

#: Without this option, and without a terminal, Ray writes its output for a program to read, and logs its own
#: command lines.
_LOG_STYLE: Final = ("--log-style", "pretty")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command line, and the variables to add to this process's environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A command that has ended: its exit code, and its output if it was captured."""

    code: int
    output: str = ""

    @property
    def last_lines(self) -> str:
        """The last three lines of output, for an error message; of a traceback, its last line.

        >>> output = "a\\nTraceback (most recent call last):\\n  File x\\nOSError: no"
        >>> Completed(code=1, output=output).last_lines
        'a / OSError: no'
        """
        plain = [_COLOUR.sub("", line).rstrip() for line in self.output.splitlines()]
        lines = [line for line in plain if line and not line.startswith((" ", "\t", "Traceback "))]
        return " / ".join(lines[-3:]) or "no output"


def run(command: Command, *, capture: bool = False, timeout: float | None = None) -> Completed:
    """Run a command to its end; return its exit code and, if captured, its output.

    The command gets no terminal input, so an ssh does not pass Ctrl-C on: Ctrl-C ends the command on this
    machine. All its processes have ended when this function returns or raises.

    Args:
        command: the command.
        capture: return the output for the caller instead of printing it in this terminal.
        timeout: seconds that the command may take; None: no limit.

    Raises:
        ClusterError: the command cannot be run, or did not end in time.
    """
    try:
        process = subprocess.Popen(
            command.argv,
            env={**os.environ, **command.env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
            stderr=subprocess.STDOUT if capture else None,
        )
    except OSError as error:
        raise ClusterError(f"`{command.argv[0]}` cannot be run: {error.strerror}.") from None
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            words = f"`{shlex.join(command.argv)}` did not end within {timeout:g} s."
            raise ClusterError(words) from None
        raise
    # A pseudo-terminal on the head ends its lines with an additional carriage return.
    return Completed(
        code=process.returncode, output=(output or b"").decode(errors="replace").replace("\r\n", "\n")
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its child processes: an ssh that it started would otherwise continue."""
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def ray_up(cluster: ClusterFile, *, restart: bool) -> Command:
    """Return the command that starts or updates a cluster; ``restart`` restarts Ray, which ends its jobs."""
    # A cached configuration outlives the file from which it was made.
    options = ["-y", "--no-config-cache", *([] if restart else ["--no-restart"])]
    return _ray(cluster, "up", *_LOG_STYLE, *options, str(cluster.path))


def ray_exec(cluster: ClusterFile, line: str) -> Command:
    """Return the command that runs a line of shell on the head."""
    # The head's login shell may not set the mode.
    return _ray(cluster, "exec", *_LOG_STYLE, str(cluster.path), f"export RAY_AUTH_MODE=token; {line}")


def ray_down(cluster: ClusterFile) -> Command:
    """Return the command that ends a cluster."""
    return _ray(cluster, "down", *_LOG_STYLE, "-y", str(cluster.path))


def ray_get_head_ip(cluster: ClusterFile) -> Command:
    """Return the command that prints the head's address; it fails if the cluster has no head."""
    return _ray(cluster, "get-head-ip", str(cluster.path))


def ray_status() -> Command:
    """Return the command that prints the autoscaler's state; run it on the head itself."""
    return Command(argv=(*_RAY, "status"), env={"RAY_AUTH_MODE": "token"})


def ray_stop() -> Command:
    """Return the command that ends Ray on this machine."""
    return Command(argv=(*_RAY, "stop"))


def ray_get_auth_token(cluster: ClusterFile) -> Command:
    """Return the command that prints the token. Without a token, it first creates one."""
    return _ray(cluster, "get-auth-token", "--generate")


def submit_command(identity: str, module: str, arguments: Sequence[str]) -> str:
    """Return the line for the head's shell that submits a command of this package as a job.

    ``arguments`` come last on the command line, so they override the options that are added here.

    Args:
        identity: the job's identity.
        module: the command's module, such as ``tune_rescon.search``.
        arguments: the command's arguments.

    Raises:
        ClusterFileError: an argument contains a password. Ray stores, logs and displays a job's command line.

    >>> submit_command("a-1", "tune_rescon.search", ["--space", "my space"]).partition(" -- ")[2]
    "python -m tune_rescon.search --address auto --plain --tracking-uri http://127.0.0.1:5000 \
--space 'my space'"
    """
    for argument in arguments:
        if has_password(argument):
            rule = "a job's command line must hold no password: Ray keeps it and shows it on its dashboard"
            # TUNE_RESCON_TRACKING_URI would not count: the option that is added here counts before it.
            hint = (
                "Jobs inherit what is exported on the head before `ray start` (head_start_ray_commands in the"
                " cluster's file): export TUNE_RESCON_STUDY instead of --study. Give --tracking-uri without"
                " user and password, and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
            )
            raise ClusterFileError(format_error(rule, got=argument, hint=hint))
    command = ["python", "-m", module, "--address", "auto", "--plain", "--tracking-uri", MLFLOW_URI]
    # This quoting is for the head's shell; `ray job submit` quotes the words again for the job's shell.
    submit = ["ray", "job", "submit", *_JOBS_ADDRESS, "--submission-id", identity, "--no-wait"]
    return shlex.join([*submit, "--", *command, *arguments])


def follow_command(identity: str) -> str:
    """Return the line for the head's shell that prints a job's log until the job ends."""
    return shlex.join(["ray", "job", "logs", *_JOBS_ADDRESS, "--follow", identity])


def stop_command(identity: str) -> str:
    """Return the line for the head's shell that stops a job."""
    return shlex.join(["ray", "job", "stop", *_JOBS_ADDRESS, identity])


def end_when_idle_command(hours: float) -> str:
    """Return the line for the head's shell that has the cluster end itself after hours without use."""
    return f"python -m tune_rescon.cluster end-when-idle --hours {hours:g}"


def submission_id(name: str | None, now: datetime) -> str:
    """Return a new job's identity: a search's name, and the time, because a resumed search has several jobs.

    >>> submission_id("first", datetime(2026, 1, 2, 3, 4, 5))
    'first-20260102-030405'
    """
    return f"{name or 'search'}-{now:%Y%m%d-%H%M%S}"


def ssh_tunnel(cluster: ClusterFile, head: str, ports: Mapping[int, int], keys: Sequence[Path]) -> Command:
    """Return the ssh command that forwards ports of this machine to the head's loopback interface.

    Args:
        cluster: the cluster.
        head: the head's address.
        ports: the local ports, each with its port on the head.
        keys: the private keys to try; if empty, ssh chooses.
    """
    options = {
        # A cloud gives an old address to a new host with another key; Ray does not check keys either.
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
        # An agent with many keys would use up the number of tries that a server allows.
        options["IdentitiesOnly"] = "yes"
    if cluster.ssh_proxy_command:
        options["ProxyCommand"] = cluster.ssh_proxy_command
    argv = ["ssh", "-N", "-T"]
    for key in keys:
        argv += ["-i", str(key)]
    for option, value in options.items():
        argv += ["-o", f"{option}={value}"]
    for local, remote in ports.items():
        argv += ["-L", f"127.0.0.1:{local}:127.0.0.1:{remote}"]
    return Command(argv=(*argv, f"{cluster.ssh_user}@{head}"))


def _ray(cluster: ClusterFile, *words: str) -> Command:
    env = {"RAY_AUTH_MODE": "token"}
    if cluster.provider == "local":
        # With hosts in a list, the second autoscaler counts the head as one of the workers.
        env["RAY_UP_enable_autoscaler_v2"] = "0"
    return Command(argv=(*_RAY, *words), env=env)
