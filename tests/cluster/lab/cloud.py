"""A cloud: moto's EC2, S3 and IAM on the operator's network, and a real host for each of its machines."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import boto3

from tests.cluster.enclosed import LAB
from tests.cluster.lab.hosts import KEY, OPERATOR, Host, Network

__all__ = ["CREDENTIALS", "ENDPOINT", "REGION", "Cloud", "Machine", "Moto", "client", "make_bucket", "tags"]

#: Where the cloud's interfaces answer: the operator's address.
_PORT: Final = 5000
ENDPOINT: Final = f"http://{OPERATOR}:{_PORT}"
REGION: Final = "us-west-2"

#: What a machine would be given by its profile. moto takes any.
CREDENTIALS: Final[Mapping[str, str]] = {
    "AWS_ENDPOINT_URL": ENDPOINT,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}

#: Seconds between two looks at what is to run.
_TICK: Final = 0.5
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
    """moto's server, a process of its own."""

    def __init__(self) -> None:
        """Start it, and wait until it answers."""
        with (LAB / "moto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "--host", OPERATOR, "--port", str(_PORT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + _TIMEOUT
        while not self._answers():
            assert time.monotonic() < end, (LAB / "moto.log").read_text()[-2000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{ENDPOINT}/moto-api/", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An instance, and when its state was seen to change (time.time)."""

    instance: str
    kind: str
    host: Host
    booted: float


class Cloud:
    """Gives each running instance a host at its private address, and takes it away again."""

    def __init__(self, network: Network) -> None:
        """Nothing runs yet."""
        self._network = network
        self._moto: Moto | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hypervisor", daemon=True)
        self.machines: dict[str, Machine] = {}
        self.gone: dict[str, float] = {}
        self.error: BaseException | None = None

    def start(self) -> None:
        """Answer, and begin to give hosts."""
        self._moto = Moto()
        iam = client("iam")
        for name in ("tune-rescon-head", "tune-rescon-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        public = KEY.with_suffix(".pub").read_bytes()
        client("ec2").import_key_pair(KeyName="operator", PublicKeyMaterial=public)
        self._thread.start()

    def stop(self) -> None:
        """Take everything back."""
        self._done.set()
        if self._thread.ident is not None:
            self._thread.join(_TIMEOUT)
        if self._moto is not None:
            self._moto.stop()
        assert self.error is None, self.error

    def instances(self) -> list[dict[str, Any]]:
        """All there ever were, as EC2 describes them."""
        pages = client("ec2").describe_instances()["Reservations"]
        return [instance for page in pages for instance in page["Instances"]]

    def running(self, node_type: str | None = None) -> list[dict[str, Any]]:
        """Those that run; of one of Ray's node types."""
        found = [one for one in self.instances() if one["State"]["Name"] == "running"]
        return [one for one in found if node_type is None or tags(one).get("ray-user-node-type") == node_type]

    def reclaim(self, instance: str) -> None:
        """What happens to a spot machine: its power goes, and EC2 says so."""
        self.machines[instance].host.cut_power()
        client("ec2").terminate_instances(InstanceIds=[instance])

    def _run(self) -> None:
        try:
            while not self._done.wait(_TICK):
                self._look()
        except BaseException as error:
            self.error = error
            raise

    def _look(self) -> None:
        for one in self.instances():
            instance, state = one["InstanceId"], one["State"]["Name"]
            if state == "running" and instance not in self.machines:
                host = self._network.add(instance[:10], one["PrivateIpAddress"])
                self.machines[instance] = Machine(
                    instance=instance, kind=one["InstanceType"], host=host, booted=time.time()
                )
            elif state in ("shutting-down", "terminated") and instance not in self.gone:
                machine = self.machines.get(instance)
                if machine is not None and machine.host.is_on:
                    machine.host.cut_power()
                self.gone[instance] = time.time()


def tags(instance: Mapping[str, Any]) -> dict[str, str]:
    """An instance's tags."""
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}


def make_bucket(name: str) -> None:
    """In S3."""
    place = {"LocationConstraint": REGION}
    client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
