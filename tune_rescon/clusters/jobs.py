"""A search as a job of the cluster: submitted on the head, followed from this machine."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from tune_rescon.clusters.cluster import take_down
from tune_rescon.clusters.cluster_file import ClusterFile
from tune_rescon.clusters.commands import (
    HEAD_TIMEOUT,
    follow_command,
    ray_exec,
    run,
    search_job,
    stop_command,
    submission_id,
)
from tune_rescon.clusters.head import Job, ask_head
from tune_rescon.command import INTERRUPTED
from tune_rescon.errors import ClusterError

__all__ = ["send_search"]

#: Seconds between two checks of a job whose log has ended, and the consecutive failures that end the checks.
PAUSE: Final = 5.0
TRIES: Final = 5

_PROGRESS = logging.getLogger("tune_rescon.progress")


def send_search(
    cluster: ClusterFile,
    arguments: Sequence[str],
    *,
    flag: str | None,
    name: str | None,
    follow: bool,
    down: bool = False,
    module: str = "tune_rescon.search",
) -> int:
    """Submit a search, or another command of this package, as a job and return the exit code.

    Args:
        cluster: the cluster.
        arguments: the arguments of the command.
        flag: ``--name``, ``--resume`` or ``--resume-or-start``; None to pass no name.
        name: the search's name.
        follow: print the job's log and wait until the job ends.
        down: end the cluster once the job has ended, also if it failed. If this command does not see the job
            end (Ctrl-C, a head that cannot be reached), the cluster continues.
        module: the command to run.

    Raises:
        ClusterError: the head did not accept the job, cannot be reached, the job failed, or the cluster did
            not end.
    """
    identity = submission_id(name, datetime.now())
    words = search_job(identity, arguments, flag=flag, name=name, module=module)
    done = run(ray_exec(cluster, words), capture=True, timeout=HEAD_TIMEOUT)
    if done.code != 0:
        raise ClusterError(f"The head of {cluster.name} did not take the job: {done.last_words}")
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
            if failures >= TRIES:
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
    def line(words: str) -> str:
        return shlex.join(["ray", "exec", str(cluster.path), f"export RAY_AUTH_MODE=token; {words}"])

    return f"Follow it: {line(follow_command(identity))}\nStop it:   {line(stop_command(identity))}"
