"""The lab leaves no process, mount or network behind, even when it is killed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.enclosed import in_new_namespaces
from tests.cluster.lab.operator import wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(60)]

#: A duration that identifies the lab's sleep processes.
SECONDS = "86399.5"


def sleep_is_running() -> bool:
    return (
        subprocess.run(["pgrep", "-f", f"^sleep {SECONDS}"], capture_output=True, check=False).returncode == 0
    )


def test_killing_the_lab_ends_its_processes_and_network() -> None:
    mounts = Path("/proc/self/mounts").read_text()
    inside = f"sleep {SECONDS} & ip link add br7 type bridge; exec sleep {SECONDS}"
    lab = subprocess.Popen(in_new_namespaces(["bash", "-c", inside]))
    wait_for("processes", sleep_is_running, 60)
    lab.kill()
    lab.wait()
    wait_for("end of all processes", lambda: not sleep_is_running(), 60)
    assert Path("/proc/self/mounts").read_text() == mounts
    assert "br7" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
