"""What the lab leaves behind: nothing, also when it is killed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.enclosed import enclosing
from tests.cluster.lab.operator import wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(60)]

#: As long as no other sleep is.
SECONDS = "86399.5"


def sleeping() -> bool:
    return (
        subprocess.run(["pgrep", "-f", f"^sleep {SECONDS}"], capture_output=True, check=False).returncode == 0
    )


def test_killing_the_lab_ends_its_processes_and_network() -> None:
    mounts = Path("/proc/self/mounts").read_text()
    inside = f"sleep {SECONDS} & ip link add br7 type bridge; exec sleep {SECONDS}"
    lab = subprocess.Popen(enclosing(["bash", "-c", inside]))
    wait_for("processes", sleeping, 60)
    lab.kill()
    lab.wait()
    wait_for("end of all processes", lambda: not sleeping(), 60)
    assert Path("/proc/self/mounts").read_text() == mounts
    assert "br7" not in subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
