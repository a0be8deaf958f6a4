"""A simulated cloud: moto's EC2, S3 and IAM on the operator's network, and a host for each instance."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import boto3

from tests.cluster.enclosed import LAB
from tests.cluster.lab.hosts import KEY, OPERATOR, Host, Network

__all__ = ["CREDENTIALS", "ENDPOINT", "REGION", "Cloud", "Moto", "client", "make_bucket", "tags"]

#: The endpoint of the cloud's services is at the operator's address.
_PORT: Final = 5000
ENDPOINT: Final = f"http://{OPERATOR}:{_PORT}"
REGION: Final = "us-west-2"

#: The credentials that an instance would get from its profile. moto accepts any.
CREDENTIALS: Final[Mapping[str, str]] = {
    "AWS_ENDPOINT_URL": ENDPOINT,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}

#: Seconds between two reads of the instances' states.
_POLL_INTERVAL: Final = 0.5
_TIMEOUT: Final = 60.0


def client(service: str) -> Any:
    """A boto3 client of the cloud."""
    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


class Moto:
    """moto's server in a subprocess."""

    def __init__(self) -> None:
        """Start the server and wait until it answers."""
        with (LAB / "moto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "--host", OPERATOR, "--port", str(_PORT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _TIMEOUT
        while not self._answers():
            assert time.monotonic() < deadline, (LAB / "moto.log").read_text()[-2000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{ENDPOINT}/moto-api/", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Cloud:
    """Starts a host for each running instance at its private address, and stops it with the instance."""

    def __init__(self, network: Network) -> None:
        """Store the network; :meth:`start` starts the services."""
        self._network = network
        self._moto: Moto | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hypervisor", daemon=True)
        #: The hosts of all instances so far, by instance id.
        self.hosts: dict[str, Host] = {}
        self._terminated: set[str] = set()
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start the services and the thread that starts and stops hosts."""
        self._moto = Moto()
        iam = client("iam")
        for name in ("tune-rescon-head", "tune-rescon-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        public = KEY.with_suffix(".pub").read_bytes()
        client("ec2").import_key_pair(KeyName="operator", PublicKeyMaterial=public)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and the services."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT)
        if self._moto is not None:
            self._moto.stop()
        assert self._error is None, self._error

    def instances(self) -> list[dict[str, Any]]:
        """Return EC2's descriptions of all instances, terminated ones included."""
        pages = client("ec2").describe_instances()["Reservations"]
        return [instance for page in pages for instance in page["Instances"]]

    def running(self, node_type: str | None = None) -> list[dict[str, Any]]:
        """Return the running instances, of all node types of Ray or of one."""
        found = [one for one in self.instances() if one["State"]["Name"] == "running"]
        return [one for one in found if node_type is None or tags(one).get("ray-user-node-type") == node_type]

    def head(self) -> Host:
        """Return the host of the running head."""
        (instance,) = [one for one in self.running() if tags(one)["ray-node-type"] == "head"]
        return self.hosts[instance["InstanceId"]]

    def reclaim(self, instance: str) -> None:
        """Reclaim a spot instance: its host loses power, and EC2 terminates it."""
        self.hosts[instance].cut_power()
        client("ec2").terminate_instances(InstanceIds=[instance])

    def _run(self) -> None:
        try:
            while not self._done.wait(_POLL_INTERVAL):
                self._synchronize()
        except BaseException as error:
            self._error = error
            raise

    def _synchronize(self) -> None:
        for one in self.instances():
            instance, state = one["InstanceId"], one["State"]["Name"]
            if state == "running" and instance not in self.hosts:
                self.hosts[instance] = self._network.add(instance[:10], one["PrivateIpAddress"])
            elif state in ("shutting-down", "terminated") and instance not in self._terminated:
                host = self.hosts.get(instance)
                if host is not None and host.is_on:
                    host.cut_power()
                self._terminated.add(instance)


def tags(instance: Mapping[str, Any]) -> dict[str, str]:
    """Return an instance's tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


def make_bucket(name: str) -> None:
    """Create a bucket in S3."""
    configuration = {"LocationConstraint": REGION}
    client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=configuration)
