"""Processes in separate sessions are found and ended; an unreachable control store, on a simulated clock."""

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
from tune_rescon.tuning.ray.processes import ControlStoreProbe, RayProcesses, in_own_sessions

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray's processes stay in the group")

#: Starts a child, prints the child's number, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""


class ProcessAndChild:
    """A process and its child, which survives the end of the process."""

    def __init__(self) -> None:
        # Like Ray, with a preexec_fn.
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
def separate_session() -> Iterator[ProcessAndChild]:
    with in_own_sessions():
        started_process = ProcessAndChild()
    yield started_process
    started_process.end()


@pytest.fixture
def same_session() -> Iterator[ProcessAndChild]:
    started_process = ProcessAndChild()
    yield started_process
    started_process.end()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@linux
def test_a_process_that_ray_starts_has_its_own_session(
    separate_session: ProcessAndChild, same_session: ProcessAndChild
) -> None:
    assert (
        os.getsid(separate_session.parent.pid)
        == os.getpgid(separate_session.parent.pid)
        == separate_session.parent.pid
    )
    assert os.getsid(same_session.parent.pid) == os.getsid(0)


@linux
@pytest.mark.timeout(30)  # an orphan must be reaped before its end is visible
def test_all_of_a_session_is_ended_also_orphans(
    separate_session: ProcessAndChild, same_session: ProcessAndChild
) -> None:
    later_processes, processes = RayProcesses.before_start(), RayProcesses(frozenset())
    for ray_processes in (later_processes, processes):
        ray_processes.find()
    separate_session.parent.kill()
    separate_session.parent.wait()
    later_processes.end()
    assert is_alive(separate_session.child), "processes that existed before are not ended"
    processes.end()
    assert not is_alive(separate_session.child)
    assert is_alive(same_session.child)


def test_without_vital_processes_none_is_reported_gone() -> None:
    processes = RayProcesses.before_start()
    processes.find()
    assert processes.gone() == ""


@pytest.mark.parametrize(
    ("reachable", "gone_after"),
    [
        pytest.param([(0, 1000)], None, id="always reachable"),
        pytest.param([], None, id="never reachable: the address is not valid on this machine"),
        pytest.param([(0, 100), (130, 1000)], None, id="unreachable for half a minute"),
        pytest.param([(0, 100)], 136, id="unreachable for good"),
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


def test_a_control_store_is_checked_on_its_port() -> None:
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
