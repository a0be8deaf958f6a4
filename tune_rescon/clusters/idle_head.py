"""The actions of the process that ends an idle cluster. It runs on the cluster's head.

A call to the cloud terminates the machines: the workers first, this machine last. `ray down` cannot do that:
run on the head, it stops its own container before it has ended the machine.
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
from tune_rescon.clusters.idle import HeadActions, IdleFiles, Observation
from tune_rescon.clusters.mlflow_service import MlflowSettings, end_mlflow, mlflow_command
from tune_rescon.clusters.status import running_jobs
from tune_rescon.errors import ClusterError, format_error
from tune_rescon.storage import RemoteFolder, StorageUrl, parse_storage

__all__ = [
    "Ec2Machines",
    "head_actions",
    "heartbeat_age",
    "local_addresses",
    "observe_head",
    "open_machines",
    "set_idle_hours",
]

#: The cluster file that Ray writes on the head for its autoscaler.
BOOTSTRAP: Final = Path("~/ray_bootstrap_config.yaml")

#: The folder of the head's MLflow, as the shipped files start it.
MLFLOW_FOLDER: Final = Path("~/.tune_rescon/mlflow")

#: The port of the head's ssh server.
_SSH_PORT: Final = 22

#: The name of Ray's control process, without which no job runs.
GCS: Final = "gcs_server"

#: The tags that Ray gives to every machine that it starts.
_NAME_TAG: Final = "ray-cluster-name"
_KIND_TAG: Final = "ray-node-type"

#: The states of an instance that is billed, or can be billed again.
_BILLED: Final = ("pending", "running", "stopping", "stopped")

#: Seconds between two attempts to end the workers, and the number of attempts.
PAUSE: Final = 5.0
TRIES: Final = 24

_log: Final = logging.getLogger(__name__)

_PROGRESS = logging.getLogger("tune_rescon.progress")


def set_idle_hours(files: IdleFiles, hours: float, *, log: Path) -> None:
    """Set the hours without use after which the cluster ends itself, and start the process that watches.

    Args:
        files: where the hours are stored.
        hours: the hours; 0: the cluster does not end itself.
        log: the file for the output of the process that watches.

    Raises:
        ClusterError: this machine is not the head, or has no right to end the cluster.
        UserError: the cluster's machines cannot be ended.
    """
    if not hours:
        files.write_hours(0)
        _PROGRESS.info("The cluster does not end itself")
        return
    open_machines().check()
    files.write_hours(hours)
    # If a process watches already, it reads the new hours, and the new process ends at once.
    _start_detached([sys.executable, "-P", "-m", "tune_rescon.cluster", "end-when-idle"], log)
    _PROGRESS.info(f"The cluster ends itself after {hours:g} h without use")


def head_actions() -> HeadActions:
    """Return the actions on this head. The call itself does nothing there."""
    mlflow = MLFLOW_FOLDER.expanduser()
    started: list[str] = []

    def end() -> None:
        # Without a running process, the command of an earlier call starts it again.
        started[:] = mlflow_command(mlflow) or started
        end_mlflow(mlflow)

    return HeadActions(
        observe=lambda: observe_head(mlflow),
        heartbeat_age=lambda: heartbeat_age(os.environ.get("TUNE_RESCON_STORAGE", "")),
        end_mlflow=end,
        start_mlflow=lambda: _start_detached(started, Path.home() / "mlflow.log") if started else None,
        stop_ray=_stop_ray,
        end_machines=lambda: open_machines().end(),
    )


def _start_detached(command: Sequence[str], log: Path) -> None:
    """Start a process that outlives this one, and appends its output to ``log``."""
    with log.open("ab") as lines:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, start_new_session=True
        )


def observe_head(mlflow: Path) -> Observation:
    """Return what uses the cluster now; ``mlflow`` is the folder of the head's MLflow.

    A Ray that runs and does not answer counts as use, because it may have jobs.
    """
    try:
        uses = running_jobs()
    except ClusterError as error:
        uses = [f"a Ray that does not answer: {error}"] if _is_ray_running() else []
    return Observation(
        uses=tuple(uses), sessions=_ssh_sessions(), seconds_since_write=_seconds_since_write(mlflow)
    )


def heartbeat_age(storage: str) -> float:
    """Return the seconds since the last heartbeat of any search at a URL; infinite without one.

    Args:
        storage: the storage of the searches. A folder of this machine is not read.

    Raises:
        OSError: the storage cannot be read.
    """
    place = parse_storage(storage) if storage else None
    if not isinstance(place, StorageUrl):
        return math.inf
    searches = RemoteFolder.connect(place)
    heartbeats = []
    for name in searches.folders_with("space.yaml"):
        lease = searches.folder(f"{name}/lease")
        if (names := lease.names()) and (heartbeat := lease.modified(names[-1])) is not None:
            heartbeats.append(heartbeat)
    return time.time() - max(heartbeats) if heartbeats else math.inf


def _seconds_since_write(mlflow: Path) -> float:
    """Return the seconds since MLflow's database was last written; infinite without one."""
    times = []
    for path in MlflowSettings(folder=mlflow).sqlite_files:
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times) if times else math.inf


def _is_ray_running() -> bool:
    return any(process.info["name"] == GCS for process in psutil.process_iter(["name"]))


def _ssh_sessions() -> frozenset[str]:
    """Return the connections to this machine's ssh server, each by the client's address and port."""
    return frozenset(
        f"{tcp.raddr.ip}:{tcp.raddr.port}"
        for tcp in psutil.net_connections("tcp")
        if tcp.status == psutil.CONN_ESTABLISHED and tcp.laddr and tcp.raddr and tcp.laddr.port == _SSH_PORT
    )


def _stop_ray() -> None:
    try:
        done = run(ray_stop(), capture=True, timeout=HEAD_TIMEOUT)
    except ClusterError as error:
        _log.error("Ray was not stopped: %s", error)
    else:
        _log.info("Ray was stopped: %s", done.last_lines)


def open_machines(path: Path = BOOTSTRAP) -> Ec2Machines:
    """Return the machines of the cluster whose head this machine is.

    Args:
        path: the cluster's file on the head.

    Raises:
        UserError: the file is missing, or the machines cannot be ended from here.
    """
    cluster = read_cluster_file(path.expanduser())
    check_can_end(cluster)
    return Ec2Machines(cluster.name, cluster.region, local_addresses())


def local_addresses() -> frozenset[str]:
    """Return this machine's IP addresses."""
    interfaces = psutil.net_if_addrs().values()
    return frozenset(address.address for addresses in interfaces for address in addresses)


@dataclass(frozen=True, kw_only=True)
class _Instance:
    id: str
    is_head: bool
    address: str


class Ec2Machines:
    """The EC2 instances that have a cluster's tag."""

    def __init__(self, cluster: str, region: str | None, addresses: Collection[str]) -> None:
        """Store the cluster's name, its region, and the addresses of this machine."""
        self._cluster = cluster
        self._region = region
        self._addresses = addresses
        self._client: Any = None

    def check(self) -> None:
        """Check that this machine is the cluster's head, and that it has the right to end the cluster.

        Raises:
            ClusterError: it is not the head, has no right, or EC2 does not answer.
            UserError: there are no credentials.
        """
        head, workers = self._list()
        self._terminate([head, *workers], dry_run=True)

    def end(self, wait: Callable[[float], object] = time.sleep) -> None:
        """End the workers, then this machine. The call may return before this machine ends.

        Ray must not run any more: its autoscaler would replace the workers.

        Args:
            wait: called with the seconds between two attempts to end the workers.

        Raises:
            ClusterError: EC2 refuses, does not answer, or does not end the workers: some machines still run.
            UserError: there are no credentials.
        """
        for _ in range(TRIES):
            head, workers = self._list()
            if not workers:
                _log.warning("the head, %s, is ended", head)
                self._terminate([head])
                return
            _log.warning("the workers %s are ended, before the head", ", ".join(workers))
            self._terminate(workers)
            wait(PAUSE)
        raise ClusterError(f"EC2 does not end the workers of {self._cluster}.")

    def _list(self) -> tuple[str, list[str]]:
        """Return the ID of the head, which must be this machine, and the IDs of the workers."""
        with self._ec2("the cluster's machines") as ec2:
            filters = [
                {"Name": f"tag:{_NAME_TAG}", "Values": [self._cluster]},
                {"Name": "instance-state-name", "Values": list(_BILLED)},
            ]
            pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
            instances = [
                _instance(entry)
                for page in pages
                for reservation in page["Reservations"]
                for entry in reservation["Instances"]
            ]
        heads = [instance for instance in instances if instance.is_head]
        if len(heads) != 1 or heads[0].address not in self._addresses:
            names = ", ".join(f"{head.id} at {head.address}" for head in heads) or "none"
            rule = f"this machine must be the head of {self._cluster}, and the only one"
            raise ClusterError(format_error(rule, got=names))
        return heads[0].id, [instance.id for instance in instances if not instance.is_head]

    def _terminate(self, ids: Sequence[str], *, dry_run: bool = False) -> None:
        from botocore.exceptions import ClientError

        with self._ec2(f"the end of {', '.join(ids)}") as ec2:
            try:
                ec2.terminate_instances(InstanceIds=list(ids), DryRun=dry_run)
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


def _instance(entry: dict[str, Any]) -> _Instance:
    tags = {tag["Key"]: tag["Value"] for tag in entry.get("Tags", [])}
    return _Instance(
        id=entry["InstanceId"],
        is_head=tags.get(_KIND_TAG) == "head",
        address=entry.get("PrivateIpAddress", ""),
    )
