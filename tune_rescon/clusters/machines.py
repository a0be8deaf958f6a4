"""The machines of a cluster, as its cloud lists them, and their end: the workers first, this machine last.

The head calls this, in its container. `ray down` cannot: run on the head, it stops the container in which it
runs before it has ended the machine. The cloud's own call ends a machine with all that runs on it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from tune_rescon.clusters.aws_stack import aws_session
from tune_rescon.clusters.cluster_file import ClusterFile, read_cluster_file
from tune_rescon.errors import ClusterError, UserError, format_error

__all__ = ["BOOTSTRAP", "Ec2Machines", "check_can_end", "local_addresses", "open_machines"]

#: The cluster's file on its head, which Ray writes there for its autoscaler.
BOOTSTRAP: Final = Path("~/ray_bootstrap_config.yaml")

#: The providers whose machines the head can end.
_ENDABLE: Final = ("aws",)

#: The tags that Ray gives to every machine that it starts.
_NAME_TAG: Final = "ray-cluster-name"
_KIND_TAG: Final = "ray-node-type"

#: The states of an instance that is billed, or may be again.
_BILLED: Final = ("pending", "running", "stopping", "stopped")

#: Seconds between two looks at workers that are being ended, and the number of looks.
PAUSE: Final = 5.0
TRIES: Final = 24

_log: Final = logging.getLogger(__name__)


def check_can_end(cluster: ClusterFile) -> None:
    """Check that the head of a cluster can end the cluster's machines.

    Raises:
        UserError: it cannot.
    """
    if cluster.provider in _ENDABLE:
        return
    if cluster.provider == "local":
        hint = f"These machines are yours. `tune-rescon cluster down {cluster.path}` stops Ray on them."
    else:
        hint = f"End it by `tune-rescon cluster down {cluster.path}`, or with its job by `submit --down`."
    rule = f"a cluster can end itself where its provider is {' or '.join(_ENDABLE)}"
    got = f"{cluster.provider} ({cluster.path})"
    raise UserError(format_error(rule, got=got, where="--end-after-idle", hint=hint))


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
