"""cluster.yaml for the lab's cloud: a head, and one worker from the start that never leaves by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.lab.cloud import client
from tests.cluster.lab.hosts import KEY
from tests.cluster.lab.operator import overlaid

__all__ = ["one_worker_file"]


def one_worker_file() -> Path:
    """Write the file, and make the security group that it names. The cloud must answer."""
    (vpc,) = client("ec2").describe_vpcs()["Vpcs"]
    made = client("ec2").create_security_group(GroupName="mine", Description="mine", VpcId=vpc["VpcId"])
    names = {
        "sg-CHANGE": str(made["GroupId"]),
        "CHANGE-head": "tune-rescon-head",
        "CHANGE-worker": "tune-rescon-worker",
        "CHANGE-bucket": "lab",
    }
    return overlaid("cluster.yaml", names, _smaller)


def _smaller(cluster: dict[str, Any]) -> None:
    del cluster["docker"], cluster["initialization_commands"]
    cluster["provider"]["use_internal_ips"] = True
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(KEY)}
    types = cluster["available_node_types"]
    for kind in types.values():
        kind["node_config"]["KeyName"] = "operator"
    types["a10g"] |= {"resources": {"CPU": 1, "GPU": 0}, "min_workers": 1, "max_workers": 1}
