"""cluster.yaml for the lab's cloud: a head and one worker, which is never scaled down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster.lab.cloud import client
from tests.cluster.lab.hosts import KEY
from tests.cluster.lab.operator import write_cluster_file

__all__ = ["write_one_worker_file"]


def write_one_worker_file() -> Path:
    """Create a security group in the running cloud, and write the cluster file that names it."""
    (vpc,) = client("ec2").describe_vpcs()["Vpcs"]
    group = client("ec2").create_security_group(GroupName="mine", Description="mine", VpcId=vpc["VpcId"])
    names = {
        "sg-CHANGE": str(group["GroupId"]),
        "CHANGE-head": "tune-rescon-head",
        "CHANGE-worker": "tune-rescon-worker",
        "CHANGE-bucket": "lab",
    }
    return write_cluster_file("cluster.yaml", names, adapt_to_lab)


def adapt_to_lab(cluster: dict[str, Any]) -> None:
    del cluster["docker"], cluster["initialization_commands"]
    cluster["provider"]["use_internal_ips"] = True
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(KEY)}
    types = cluster["available_node_types"]
    for kind in types.values():
        kind["node_config"]["KeyName"] = "operator"
    types["a10g"] |= {"resources": {"CPU": 1, "GPU": 0}, "min_workers": 1, "max_workers": 1}
