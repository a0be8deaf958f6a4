"""Hosts: each has a network, process, mount, name and IPC namespace, with sshd as its first process."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.cluster.enclosed import LAB, tmp_bind_mounts

__all__ = ["KEY", "OPERATOR", "Host", "Network"]

#: The operator's address, on the network from which moto assigns addresses.
OPERATOR: Final = "172.31.255.2"
_PREFIX: Final = 16

#: The operator's ssh key, which every host accepts.
KEY: Final = LAB / "operator" / "home" / ".ssh" / "id"

#: The home directory has the same path on every host, as on machines of one image.
_HOME: Final = LAB / "home"

TIMEOUT: Final = 90.0

#: The first process of a host. It waits for its network interface before it listens.
_INIT: Final = """
set -eu
mount --make-rprivate /
hostname {name}
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mkdir -p {home}
mount --bind {folder}/home {home}
{keep}
mount --bind {folder}/tmp /tmp
until ip -4 addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME={home} \
  /usr/sbin/sshd -D -e -f /dev/null -h {folder}/hostkey -o ListenAddress={address} \
  -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o UsePAM=no -o PidFile=none \
  -o MaxStartups=100 -o MaxSessions=100 -o UseDNS=no -o StrictModes=no \
  -o AuthorizedKeysFile={home}/.ssh/authorized_keys
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _requirements() -> str:
    """Return the stamp of an installation by the shipped setup commands, so that they install nothing."""
    files = [Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return f"{hashlib.sha256(b''.join(files)).hexdigest()}  -\n"


@dataclass(kw_only=True)
class Host:
    """A machine with one address. Its disk survives a power cut."""

    name: str
    address: str
    image: str
    """The content of ``~/.bashrc``, which stands for the machine image."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """The directory of the disk: ``home`` and ``tmp``."""
        return LAB / "hosts" / self.name

    def start(self) -> None:
        """Power on, and wait until ssh answers."""
        folder = self.folder
        for part in ("home/.ssh", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "home" / ".bashrc").write_text(self.image)
        (folder / "home" / ".tune_rescon_installed").write_text(_requirements())
        shutil.copy(KEY.with_suffix(".pub"), folder / "home" / ".ssh" / "authorized_keys")
        others = Path("/etc/passwd").read_text().splitlines()[1:]
        root = f"root:x:0:0:root:{_HOME}:/bin/bash"
        (folder / "passwd").write_text("\n".join([root, *others, ""]))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        if not (folder / "hostkey").exists():
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "hostkey")]
            subprocess.run(key, check=True)
        init = _INIT.format(
            name=self.name,
            folder=folder,
            home=_HOME,
            address=self.address,
            keep=tmp_bind_mounts(folder / "tmp"),
        )
        flags = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        with (folder / "console").open("ab") as console:
            self._process = subprocess.Popen(
                ["unshare", *flags, "bash", "-c", init],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self._plug_in(self._process.pid)
        self._wait_for_ssh()

    def _plug_in(self, pid: int) -> None:
        own_namespace = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + TIMEOUT
        while Path(f"/proc/{pid}/ns/net").readlink() == own_namespace:
            assert time.monotonic() < deadline, f"{self.name} has no network of its own"
            time.sleep(0.01)
        # The MAC address stays the same after a restart, because other hosts cache it.
        card = ":".join(["02", "00", *(f"{int(part):02x}" for part in self.address.split("."))])
        peer = ["peer", "name", "eth0", "address", card, "netns", str(pid)]
        _ip("link", "add", self._cable, "type", "veth", *peer)
        _ip("link", "set", self._cable, "master", "br0", "up")
        inside = ["nsenter", "--target", str(pid), "--net", "ip"]
        for arguments in (
            "link set lo up",
            "link set eth0 up",
            f"addr add {self.address}/{_PREFIX} dev eth0",
        ):
            subprocess.run([*inside, *arguments.split()], check=True)

    @property
    def _cable(self) -> str:
        return f"v{self.address.replace('.', '')}"[:15]

    def _wait_for_ssh(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.run("true", check=False).returncode != 0:
            assert time.monotonic() < deadline, (self.folder / "console").read_text()
            time.sleep(0.1)

    def cut_power(self) -> None:
        """SIGKILL the first process; the kernel kills the others and removes the network interface."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in [*map(int, children), self._process.pid]:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # The kernel removes the interface as well, but later.
        subprocess.run(["ip", "link", "del", self._cable], check=False, stderr=subprocess.DEVNULL)

    def wipe(self) -> None:
        """Delete the disk."""
        shutil.rmtree(self.folder)

    @property
    def is_on(self) -> bool:
        """Whether the host is running."""
        return self._process is not None

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command over ssh, in a shell that has read ``~/.bashrc``."""
        remote = f"bash --login -c {shlex.quote(f'source ~/.bashrc; {command}')}"
        quiet = (
            "-oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -oLogLevel=ERROR -oConnectTimeout=5"
        )
        ssh = ["ssh", "-i", str(KEY), *quiet.split(), f"root@{self.address}", remote]
        return subprocess.run(ssh, text=True, capture_output=True, check=check, timeout=120)


class Network:
    """A network bridge with the operator and the hosts."""

    def __init__(self, image: Mapping[str, str]) -> None:
        """Store ``image``, the environment variables of every host's shells."""
        search = [str(Path(sys.executable).parent), "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        variables = {"PATH": os.pathsep.join(search), **image}
        self._image = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())
        self.hosts: dict[str, Host] = {}

    def start(self) -> None:
        """Create the bridge and the operator's ssh key."""
        _ip("link", "add", "br0", "type", "bridge")
        _ip("addr", "add", f"{OPERATOR}/{_PREFIX}", "dev", "br0")
        _ip("link", "set", "br0", "up")
        KEY.parent.mkdir(parents=True, mode=0o700)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(KEY)], check=True)

    def add(self, name: str, address: str) -> Host:
        """Start a new host."""
        host = self.hosts[name] = Host(name=name, address=address, image=self._image)
        host.start()
        return host

    def stop(self) -> None:
        """Stop all hosts and remove the bridge and their files."""
        for host in self.hosts.values():
            if host.is_on:
                host.cut_power()
        self.hosts.clear()
        _ip("link", "del", "br0")
        # The next scenario starts without a key, a token or a cluster in Ray's state.
        for left in (LAB / "hosts", KEY.parent, KEY.parent.with_name(".ray"), *Path("/tmp").glob("ray*")):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
