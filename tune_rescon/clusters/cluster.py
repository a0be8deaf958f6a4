"""Start a cluster, run a search on it as a job, open tunnels to it, and end it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from tune_rescon.clusters.cluster_file import TOKEN, ClusterFile, check_can_end
from tune_rescon.clusters.commands import (
    DASHBOARD_PORT,
    END_MLFLOW,
    HEAD_TIMEOUT,
    IS_RAY_RUNNING,
    MLFLOW_PORT,
    end_when_idle_command,
    follow_command,
    ray_down,
    ray_exec,
    ray_get_auth_token,
    ray_get_head_ip,
    ray_up,
    run,
    ssh_tunnel,
    stop_command,
    submission_id,
    submit_command,
)
from tune_rescon.clusters.status import Job, ask_head
from tune_rescon.command import INTERRUPTED
from tune_rescon.errors import ClusterError, ClusterFileError, UserError, counted, format_error
from tune_rescon.paths import expanded_path
from tune_rescon.signal_handlers import handled_signals

__all__ = [
    "bring_up",
    "find_head",
    "find_keys",
    "hold_tunnel",
    "submit_job",
    "take_down",
]


#: Seconds that ssh has to open its ports.
TUNNEL_TIMEOUT: Final = 60.0

#: The attempts to find out whether Ray runs on a head, and a job's state. Seconds between two attempts.
HEAD_TRIES: Final = 3
JOB_TRIES: Final = 5
PAUSE: Final = 5.0

_PROGRESS = logging.getLogger("tune_rescon.progress")

#: Ray's error for a cluster whose head does not run, and Azure's for one that was never started.
_NO_HEAD: Final = re.compile(r"Head node of cluster \(.*\) not found|ResourceGroupNotFound")

_ADDRESS: Final = re.compile(r"[0-9A-Fa-f.:]+|[A-Za-z0-9][A-Za-z0-9.-]*")


def bring_up(
    cluster: ClusterFile, *, restart: bool, wait: float, end_after_idle: float | None = None
) -> None:
    """Start a cluster, or update a running one, and wait for its workers.

    Args:
        cluster: the cluster.
        restart: restart Ray on a head on which it already runs, which ends its jobs.
        wait: seconds to wait for the workers.
        end_after_idle: hours without use after which the cluster ends itself; 0: never; None: as before.

    Raises:
        ClusterError: the cluster did not start, cannot end itself, or some workers did not join within
            ``wait`` seconds.
        UserError: a cluster with this provider cannot end itself. Nothing was started.
    """
    if end_after_idle:
        check_can_end(cluster)
    if cluster.mounts_token:
        _ensure_token(cluster)
    is_up = not restart and _is_ray_running(cluster)
    if is_up:
        _PROGRESS.info(
            f"Ray runs on the head of {cluster.name} already: it is brought up to date, and its jobs continue"
        )
    elif cluster.provider == "local":
        _delete_node_state(cluster)
    done = run(ray_up(cluster, restart=not is_up))
    if done.code != 0:
        raise ClusterError(f"`ray up` of {cluster.path} ended with code {done.code}; see above.")
    if end_after_idle is not None:
        # Before the workers come: the cluster ends itself also if they do not.
        _end_after_idle(cluster, end_after_idle)
    joined = _wait_for_workers(cluster, wait)
    _PROGRESS.info(
        f"{cluster.name} is up: its head, and {counted(joined, 'worker')}"
        f" (at least {cluster.workers} were to come)"
    )


def _end_after_idle(cluster: ClusterFile, hours: float) -> None:
    done = run(ray_exec(cluster, end_when_idle_command(hours)), capture=True, timeout=HEAD_TIMEOUT)
    if done.code != 0:
        raise ClusterError(
            f"{cluster.name} runs, and will NOT end itself: {done.last_lines}. End it by"
            f" `tune-rescon cluster down {cluster.path}`."
        )
    _PROGRESS.info(
        f"{cluster.name} ends itself after {hours:g} h without use"
        if hours
        else f"{cluster.name} does not end itself"
    )


def submit_job(
    cluster: ClusterFile, module: str, arguments: Sequence[str], *, name: str | None, follow: bool, down: bool
) -> int:
    """Submit a command of this package as a job and return the exit code.

    Args:
        cluster: the cluster.
        module: the command's module, such as ``tune_rescon.search``.
        arguments: the command's arguments.
        name: the search's name, with which the job's identity begins.
        follow: print the job's log and wait until the job ends.
        down: end the cluster once the job has ended, also if it failed. If this command does not see the job
            end (Ctrl-C, a head that cannot be reached), the cluster continues.

    Raises:
        ClusterError: the head did not accept the job, cannot be reached, the job failed, or the cluster did
            not end.
    """
    identity = submission_id(name, datetime.now())
    line = submit_command(identity, module, arguments)
    done = run(ray_exec(cluster, line), capture=True, timeout=HEAD_TIMEOUT)
    if done.code != 0:
        raise ClusterError(f"The head of {cluster.name} did not take the job: {done.last_lines}")
    _PROGRESS.info(f"Job {identity} runs on {cluster.name}")
    if not follow:
        _PROGRESS.info(_hints(cluster, identity))
        return 0
    try:
        job = _follow(cluster, identity)
    except KeyboardInterrupt:
        kept = f" So does the cluster: end it by `tune-rescon cluster down {cluster.path}`." if down else ""
        _PROGRESS.info(f"\nThe job continues.{kept}\n{_hints(cluster, identity)}")
        return INTERRUPTED
    except ClusterError:
        if down:
            _PROGRESS.info(f"{cluster.name} was not ended, because its job was not seen to end: look at it.")
        raise
    if down:
        _PROGRESS.info(f"Job {identity} has ended as {job.status}: {cluster.name} is ended")
        take_down(cluster)
    if job.status == "SUCCEEDED":
        return 0
    raise ClusterError(f"job {identity} has ended as {job.status}. {job.message}".rstrip())


def _follow(cluster: ClusterFile, identity: str) -> Job:
    """Print the log until the job ends. A log that ends earlier is printed again, because its ssh broke."""
    failures = 0
    while True:
        run(ray_exec(cluster, follow_command(identity)))
        try:
            job = ask_head(cluster).job(identity)
        except ClusterError:
            failures += 1
            if failures >= JOB_TRIES:
                _PROGRESS.info(_hints(cluster, identity))
                raise
        else:
            if job is None:
                raise ClusterError(f"the head of {cluster.name} knows of no job {identity} any more.")
            if not job.is_active:
                return job
            failures = 0
            _PROGRESS.info(
                f"-- the connection ended, the job continues: its log again, from the start, in {PAUSE:g} s"
            )
        time.sleep(PAUSE)


def _hints(cluster: ClusterFile, identity: str) -> str:
    def on_head(line: str) -> str:
        return shlex.join(["ray", "exec", str(cluster.path), f"export RAY_AUTH_MODE=token; {line}"])

    return f"Follow it: {on_head(follow_command(identity))}\nStop it:   {on_head(stop_command(identity))}"


def hold_tunnel(cluster: ClusterFile, *, mlflow: int, dashboard: int) -> None:
    """Open tunnels to the head's MLflow and dashboard, and hold them until Ctrl-C or SIGTERM.

    Args:
        cluster: the cluster.
        mlflow: the port of this machine for MLflow.
        dashboard: the port of this machine for Ray's dashboard.

    Raises:
        ClusterError: the cluster has no head, or ssh ended by itself.
        ClusterFileError: the file does not define how to reach the head by ssh.
        UserError: a port of this machine is in use.
    """
    if cluster.ssh_user is None:
        hint = "The tunnel is an ssh of its own."
        raise ClusterFileError(
            format_error("must name a user", where=f"{cluster.path}: auth.ssh_user", hint=hint)
        )
    if cluster.ssh_by_node_id:
        hint = f"Use: ray attach -p {MLFLOW_PORT} -p {DASHBOARD_PORT} {cluster.path}"
        rule = "a tunnel needs an address to go to"
        got = "ssh_proxy_use_node_id"
        raise ClusterFileError(format_error(rule, got=got, where=f"{cluster.path}: auth", hint=hint))
    for flag, port in (("--mlflow-port", mlflow), ("--dashboard-port", dashboard)):
        _check_free(flag, port)
    head = find_head(cluster)
    if head is None:
        raise ClusterError(f"{cluster.name} has no head that runs: start it by `up`.")
    ports = {mlflow: MLFLOW_PORT, dashboard: DASHBOARD_PORT}
    with handled_signals(_interrupt, signal.SIGTERM), suppress(KeyboardInterrupt):
        _hold(cluster, head, ports)


def find_keys(cluster: ClusterFile, ssh_folder: Path) -> list[Path]:
    """Return the keys to try: the file's key, or those that Ray created for the cluster's region.

    If the list is empty, ssh chooses the key.
    """
    if cluster.ssh_key is not None:
        return [expanded_path(cluster.ssh_key, where=f"{cluster.path}: auth.ssh_private_key")]
    if cluster.region is None or not ssh_folder.is_dir():
        return []
    return [path for path in sorted(ssh_folder.glob("ray-autoscaler_*.pem")) if cluster.region in path.name]


def _hold(cluster: ClusterFile, head: str, ports: Mapping[int, int]) -> None:
    command = ssh_tunnel(cluster, head, ports, find_keys(cluster, Path.home() / ".ssh"))
    try:
        # A separate process group, because Ctrl-C is handled in this process.
        process = subprocess.Popen(
            command.argv, env={**os.environ, **command.env}, stdin=subprocess.DEVNULL, process_group=0
        )
    except OSError as error:
        raise ClusterError(f"ssh cannot be run: {error.strerror}.") from None
    try:
        _wait_until_open(process, list(ports))
        mlflow, dashboard = ports
        _PROGRESS.info(
            f"MLflow:    http://127.0.0.1:{mlflow}\nDashboard: http://127.0.0.1:{dashboard}\n"
            f"It asks for the token: ray exec {cluster.path} 'cat {TOKEN}'\nCtrl-C ends it."
        )
        process.wait()
        raise _ssh_ended(process.returncode)
    finally:
        process.terminate()
        process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], ports: Sequence[int]) -> None:
    deadline = time.monotonic() + TUNNEL_TIMEOUT
    for port in ports:
        while not _is_open(port):
            if process.poll() is not None:
                raise _ssh_ended(process.returncode)
            if time.monotonic() > deadline:
                raise ClusterError(f"ssh did not open port {port} within {TUNNEL_TIMEOUT:g} s.")
            time.sleep(0.1)


def _ssh_ended(code: int) -> ClusterError:
    return ClusterError(f"ssh ended with code {code}; see above.")


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _check_free(flag: str, port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        rule = "must be a port that is free here"
        raise UserError(format_error(rule, got=f"{port} ({error.strerror})", where=flag)) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def take_down(cluster: ClusterFile) -> None:
    """End a cluster after a last copy of its MLflow database; print what may be left behind.

    Raises:
        ClusterError: the cluster did not end.
    """
    if (why := _end_mlflow(cluster)) is not None:
        _PROGRESS.info(f"MLflow was not ended first, so its last changes may not be kept: {why}")
    done = run(ray_down(cluster))
    if done.code != 0:
        raise ClusterError(f"`ray down` of {cluster.path} ended with code {done.code}; see above.")
    _PROGRESS.info(_leftovers(cluster))


def _end_mlflow(cluster: ClusterFile) -> str | None:
    """Have the head copy MLflow's database and end MLflow; return the error, or None.

    It raises nothing, because a head that hangs must not prevent the end of its cluster.
    """
    try:
        if find_head(cluster) is None:
            return None
        done = run(ray_exec(cluster, END_MLFLOW), capture=True, timeout=HEAD_TIMEOUT)
    except ClusterError as error:
        return str(error)
    return done.last_lines if done.code != 0 else None


def find_head(cluster: ClusterFile) -> str | None:
    """Return the address of the head; None if the cluster has no head.

    Raises:
        ClusterError: Ray did not find out, for example because the cloud did not answer.
    """
    done = run(ray_get_head_ip(cluster), capture=True, timeout=HEAD_TIMEOUT)
    if done.code != 0 and _NO_HEAD.search(done.output):
        return None
    words = done.output.split()
    if done.code != 0 or not words or not _ADDRESS.fullmatch(words[-1]):
        raise ClusterError(
            f"Ray did not find out whether {cluster.name} has a head: {done.last_lines}. Try again."
        )
    return words[-1]


def _is_ray_running(cluster: ClusterFile) -> bool:
    if find_head(cluster) is None:
        return False
    for attempt in range(HEAD_TRIES):
        if attempt:
            time.sleep(PAUSE)
        output = run(ray_exec(cluster, IS_RAY_RUNNING), capture=True, timeout=HEAD_TIMEOUT).output
        # Compare complete lines, because an error may quote the command.
        lines = [line.strip() for line in output.splitlines()]
        if "ray: yes" in lines or "ray: no" in lines:
            return "ray: yes" in lines
    raise ClusterError(
        f"The head of {cluster.name} exists, but did not report whether Ray runs on it. Try again;"
        " or give --restart, which restarts Ray and ends the running jobs."
    )


def _delete_node_state(cluster: ClusterFile) -> None:
    """Delete the state that Ray keeps on this machine for nodes that it does not start itself.

    This state outlives `ray down`, and Ray does not set up a node that is in it. A node with a new disk would
    then lack its files and its token.
    """
    # As Ray chooses it, also if a variable is empty.
    temporary = os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    state = Path(temporary) / "ray" / f"cluster-{cluster.name}.state"
    state.unlink(missing_ok=True)


def _wait_for_workers(cluster: ClusterFile, wait: float) -> int:
    deadline = time.monotonic() + wait
    joined: int | None = None
    last_error = ""
    while True:
        try:
            workers = ask_head(cluster).workers
        except ClusterError as error:
            last_error = str(error)
        else:
            if workers != joined:
                _PROGRESS.info(
                    f"{workers} of {counted(cluster.workers, 'worker')}"
                    f" {'is' if cluster.workers == 1 else 'are'} there"
                )
            joined = workers
            if joined >= cluster.workers:
                return joined
        if time.monotonic() + PAUSE >= deadline:
            break
        time.sleep(PAUSE)
    if joined is None:
        raise ClusterError(last_error)
    raise ClusterError(
        f"{joined} of {counted(cluster.workers, 'worker')} came within {wait:g} s."
        " The head's log has the reason:"
        f" ray exec {cluster.path} 'tail -n 100 /tmp/ray/session_latest/logs/monitor*'"
    )


def _ensure_token(cluster: ClusterFile) -> None:
    """Create this machine's token if none exists, and make it readable only for its owner.

    Only a cluster file that mounts it needs it. With the shipped files, the head makes one for its cluster.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not path.is_file():
        # The output is captured, because it contains the token.
        done = run(ray_get_auth_token(cluster), capture=True, timeout=HEAD_TIMEOUT)
        if done.code != 0 or not path.is_file():
            raise ClusterError(f"`ray get-auth-token --generate` made no {path} (code {done.code}).")
    # Ray makes the file readable for all users, and rsync copies its mode to the nodes.
    path.chmod(0o600)


def _leftovers(cluster: ClusterFile) -> str:
    if cluster.provider == "local":
        return (
            f"{cluster.name} is down. Ray was stopped on the head; on the workers it ends by itself within a"
            " minute. Files stay on all of them."
        )
    return (
        f"{cluster.name} is down. What may be left, and cost money: stopped machines where the file has"
        " `cache_stopped_nodes: true`, disks that are not deleted with their machine, the bucket. Key pairs,"
        " security groups and roles that Ray made stay too, and cost nothing."
    )
