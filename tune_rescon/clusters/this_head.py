"""What the process that ends an idle cluster does on its head: looks at it, and ends what runs there.

The cloud's own call ends the machines, with all that runs on them: the workers first, this machine last.
`ray down` cannot: run on the head, it stops the container in which it runs before it has ended the machine.
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from tune_rescon.clusters.aws_stack import aws_session
from tune_rescon.clusters.cluster_file import check_can_end, read_cluster_file
from tune_rescon.clusters.commands import HEAD_TIMEOUT, ray_stop, run
from tune_rescon.clusters.head import running_jobs
from tune_rescon.clusters.idle import Head, IdleFiles, Look
from tune_rescon.clusters.mlflow_service import MlflowSettings, end_mlflow, mlflow_command
from tune_rescon.errors import ClusterError, format_error
from tune_rescon.storage import RemoteFolder, StorageUrl, parse_storage

__all__ = [
    "Ec2Machines",
    "beat_age",
    "head_actions",
    "keep_watched",
    "local_addresses",
    "look_at_head",
    "open_machines",
]

#: The cluster's file on its head, which Ray writes there for its autoscaler.
BOOTSTRAP: Final = Path("~/ray_bootstrap_config.yaml")

#: The folder of the head's MLflow, as the shipped files start it.
MLFLOW_FOLDER: Final = Path("~/.tune_rescon/mlflow")

#: Ray reaches a head at this port only.
_SSH_PORT: Final = 22

#: Ray's process without which no job runs.
GCS: Final = "gcs_server"

#: The tags that Ray gives to every machine that it starts.
_NAME_TAG: Final = "ray-cluster-name"
_KIND_TAG: Final = "ray-node-type"

#: The states of an instance that is billed, or may be again.
_BILLED: Final = ("pending", "running", "stopping", "stopped")

#: Seconds between two looks at workers that are being ended, and the number of looks.
PAUSE: Final = 5.0
TRIES: Final = 24

_log: Final = logging.getLogger(__name__)

_PROGRESS = logging.getLogger("tune_rescon.progress")


def keep_watched(files: IdleFiles, hours: float, *, log: Path) -> None:
    """Have the cluster end itself after some hours without use, also after a restart of its container.

    Args:
        files: where the hours are kept.
        hours: the hours; 0: the cluster does not end itself.
        log: the file for the lines of the process that watches.

    Raises:
        ClusterError: this machine is no head, or has no right to end the cluster.
        UserError: the cluster's machines cannot be ended.
    """
    if not hours:
        files.write_hours(0)
        _PROGRESS.info("The cluster does not end itself")
        return
    open_machines().check()
    files.write_hours(hours)
    # A process that watches already reads the new hours, and this one returns.
    _start_apart([sys.executable, "-P", "-m", "tune_rescon.cluster", "end-when-idle"], log)
    _PROGRESS.info(f"The cluster ends itself after {hours:g} h without use")


def head_actions() -> Head:
    """Return what can be done on this head. Nothing is asked or opened yet."""
    mlflow = MLFLOW_FOLDER.expanduser()
    started: list[str] = []

    def end() -> None:
        # If it has ended by itself since its last start, the earlier command starts it again.
        started[:] = mlflow_command(mlflow) or started
        end_mlflow(mlflow)

    return Head(
        look=lambda: look_at_head(mlflow),
        beat_age=lambda: beat_age(os.environ.get("TUNE_RESCON_STORAGE", "")),
        end_mlflow=end,
        start_mlflow=lambda: _start_apart(started, Path.home() / "mlflow.log") if started else None,
        stop_ray=_stop_ray,
        end_machines=lambda: open_machines().end(),
    )


def _start_apart(command: Sequence[str], log: Path) -> None:
    """Start a process that outlives this one, and appends its output to ``log``."""
    with log.open("ab") as lines:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, start_new_session=True
        )


def look_at_head(mlflow: Path) -> Look:
    """Return what uses the cluster now; ``mlflow`` is the folder of the head's MLflow.

    A Ray that does not answer counts as use, because its jobs may run. A Ray that has ended runs no job.
    """
    try:
        uses = running_jobs()
    except ClusterError as error:
        uses = [f"a Ray that does not answer: {error}"] if _ray_runs() else []
    return Look(uses=tuple(uses), sessions=_sessions(), unwritten=_unwritten(mlflow))


def beat_age(storage: str) -> float:
    """Return the seconds since the last heartbeat of any search at a URL; infinite without one.

    Args:
        storage: the storage of the searches. A folder of this machine is not asked.

    Raises:
        OSError: the storage cannot be read.
    """
    place = parse_storage(storage) if storage else None
    if not isinstance(place, StorageUrl):
        return math.inf
    searches = RemoteFolder.connect(place)
    beats = []
    for name in searches.folders_with("space.yaml"):
        lease = searches.folder(f"{name}/lease")
        if (names := lease.names()) and (beat := lease.modified(names[-1])) is not None:
            beats.append(beat)
    return time.time() - max(beats) if beats else math.inf


def _unwritten(mlflow: Path) -> float:
    """Return the seconds since MLflow's database was last written; infinite without one."""
    database = MlflowSettings(folder=mlflow).sqlite
    times = []
    for path in (database, database.with_name(f"{database.name}-wal")):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times) if times else math.inf


def _ray_runs() -> bool:
    return any(process.info["name"] == GCS for process in psutil.process_iter(["name"]))


def _sessions() -> frozenset[str]:
    """Return the connections to this machine's ssh, each by the other end's address and port."""
    return frozenset(
        f"{one.raddr.ip}:{one.raddr.port}"
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_ESTABLISHED and one.laddr and one.raddr and one.laddr.port == _SSH_PORT
    )


def _stop_ray() -> None:
    try:
        done = run(ray_stop(), capture=True, timeout=HEAD_TIMEOUT)
    except ClusterError as error:
        _log.error("Ray was not stopped: %s", error)
    else:
        _log.info("Ray was stopped: %s", done.last_words)


def open_machines(path: Path = BOOTSTRAP) -> Ec2Machines:
    """Return the machines of the cluster whose head this machine is.

    Args:
        path: the cluster's file on the head.

    Raises:
        UserError: no cluster's file is there, or the machines cannot be ended from here.
    """
    cluster = read_cluster_file(path.expanduser())
    check_can_end(cluster)
    return Ec2Machines(cluster.name, cluster.region, local_addresses())


def local_addresses() -> frozenset[str]:
    """Return this machine's IP addresses."""
    return frozenset(one.address for each in psutil.net_if_addrs().values() for one in each)


@dataclass(frozen=True, kw_only=True)
class _Instance:
    name: str
    is_head: bool
    address: str


class Ec2Machines:
    """The instances of EC2 that have a cluster's tag."""

    def __init__(self, cluster: str, region: str | None, addresses: Collection[str]) -> None:
        """Store the cluster's name, its region, and the addresses of this machine."""
        self._cluster = cluster
        self._region = region
        self._addresses = addresses
        self._client: Any = None

    def check(self) -> None:
        """Check that this machine is the cluster's head, and that it has the right to end the cluster.

        Raises:
            ClusterError: it is not, or has not; or EC2 cannot be asked.
            UserError: there are no credentials.
        """
        head, workers = self._listed()
        self._terminate([head, *workers], only_ask=True)

    def end(self, wait: Callable[[float], object] = time.sleep) -> None:
        """End the workers, then this machine. The call may return before this machine ends.

        Ray must not run any more: its autoscaler would replace the workers.

        Args:
            wait: called with the seconds between two looks at workers that end.

        Raises:
            ClusterError: EC2 refuses, cannot be asked, or does not end the workers: some machines still run.
            UserError: there are no credentials.
        """
        for _ in range(TRIES):
            head, workers = self._listed()
            if not workers:
                _log.warning("the head, %s, is ended", head)
                self._terminate([head])
                return
            _log.warning("%s: ended before the head", ", ".join(workers))
            self._terminate(workers)
            wait(PAUSE)
        raise ClusterError(f"EC2 does not end the workers of {self._cluster}.")

    def _listed(self) -> tuple[str, list[str]]:
        """Return the head, which is this machine, and the workers."""
        with self._ec2("the cluster's machines") as ec2:
            wanted = [
                {"Name": f"tag:{_NAME_TAG}", "Values": [self._cluster]},
                {"Name": "instance-state-name", "Values": list(_BILLED)},
            ]
            pages = ec2.get_paginator("describe_instances").paginate(Filters=wanted)
            found = [
                _instance(one)
                for page in pages
                for reservation in page["Reservations"]
                for one in reservation["Instances"]
            ]
        heads = [one for one in found if one.is_head]
        if len(heads) != 1 or heads[0].address not in self._addresses:
            names = ", ".join(f"{one.name} at {one.address}" for one in heads) or "none"
            rule = f"this machine must be the head of {self._cluster}, and the only one"
            raise ClusterError(format_error(rule, got=names))
        return heads[0].name, [one.name for one in found if not one.is_head]

    def _terminate(self, names: Sequence[str], *, only_ask: bool = False) -> None:
        from botocore.exceptions import ClientError

        with self._ec2(f"the end of {', '.join(names)}") as ec2:
            try:
                ec2.terminate_instances(InstanceIds=list(names), DryRun=only_ask)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code == "DryRunOperation":
                    return
                if code == "UnauthorizedOperation":
                    hint = "cluster/aws/stack.yaml gives that right to the head of the cluster it names."
                    rule = f"the head must have the right to end the machines of {self._cluster}"
                    raise ClusterError(format_error(rule, got=code, hint=hint)) from None
                raise

    @contextmanager
    def _ec2(self, what: str) -> Iterator[Any]:
        with aws_session(what) as session:
            if self._client is None:
                self._client = session.client("ec2", region_name=self._region)
            yield self._client


def _instance(found: dict[str, Any]) -> _Instance:
    tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
    return _Instance(
        name=found["InstanceId"],
        is_head=tags.get(_KIND_TAG) == "head",
        address=found.get("PrivateIpAddress", ""),
    )
