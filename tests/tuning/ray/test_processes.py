"""Processes in sessions of their own, found and ended; a control store that is away, on a simulated clock."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress

import psutil
import pytest

from tests.waiting import reserved_port
from tune_rescon.tuning.ray.processes import ControlStoreProbe, RayProcesses, started_apart

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray's processes stay in the group")

#: A child that has a child of its own, says its number, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


class Family:
    """A process and its child; the child outlives it if nobody ends it."""

    def __init__(self) -> None:
        # As Ray starts its processes: it runs Python in the child (preexec_fn).
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, preexec_fn=os.getpid
        )
        assert self.parent.stdout is not None
        self.child = psutil.Process(int(self.parent.stdout.readline()))

    def end(self) -> None:
        self.parent.kill()
        with suppress(psutil.NoSuchProcess):
            self.child.kill()
        self.parent.communicate()


@pytest.fixture
def apart() -> Iterator[Family]:
    with started_apart():
        family = Family()
    yield family
    family.end()


@pytest.fixture
def beside() -> Iterator[Family]:
    family = Family()
    yield family
    family.end()


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@linux
def test_a_process_started_apart_has_its_own_session(apart: Family, beside: Family) -> None:
    assert os.getsid(apart.parent.pid) == os.getpgid(apart.parent.pid) == apart.parent.pid
    assert os.getsid(beside.parent.pid) == os.getsid(0)


@linux
@pytest.mark.timeout(30)  # an orphan's end is seen once somebody reaps it
def test_all_of_a_session_is_ended_also_orphans(apart: Family, beside: Family) -> None:
    later, processes = RayProcesses.ahead(), RayProcesses(frozenset())
    for found in (later, processes):
        found.find()
    apart.parent.kill()
    apart.parent.wait()
    later.end()
    assert lives(apart.child), "what was there before is somebody else's"
    processes.end()
    assert not lives(apart.child)
    assert lives(beside.child)


def test_without_vital_processes_none_is_reported_gone() -> None:
    processes = RayProcesses.ahead()
    processes.find()
    assert processes.gone() == ""


@pytest.mark.parametrize(
    ("reachable", "gone_after"),
    [
        pytest.param([(0, 1000)], None, id="always there"),
        pytest.param([], None, id="never reached: its address means nothing here"),
        pytest.param([(0, 100), (130, 1000)], None, id="away for half a minute"),
        pytest.param([(0, 100)], 136, id="gone"),
    ],
)
def test_a_control_store_that_stays_unreachable_is_reported_gone(
    reachable: Sequence[tuple[float, float]], gone_after: float | None
) -> None:
    now = 0.0
    probe = ControlStoreProbe(
        "10.0.0.1:6379",
        reach=lambda _: any(begin <= now < end for begin, end in reachable),
        clock=lambda: now,
    )
    first = None
    for second in range(300):
        now = float(second)
        if probe.gone() and first is None:
            first = now
    assert first == gone_after


def test_a_control_store_is_looked_for_on_its_port() -> None:
    with reserved_port() as port:
        address = f"127.0.0.1:{port}"
        now = 0.0
        probe = ControlStoreProbe(address, clock=lambda: now)
        with socket.create_server(("127.0.0.1", port)):
            assert probe.gone() == ""
        for second in range(60):
            now = float(second)
            last = probe.gone()
    assert last == f"the control store (GCS) at {address}"
