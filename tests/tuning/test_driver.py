"""Whether the process that holds a lease is alive, by its number and its start."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys

import psutil
import pytest

from tune_rescon.tuning.driver import Lease, LeaseDecision, decide_lease, process_start, this_driver


def test_this_process_is_found_alive() -> None:
    me = this_driver()
    assert me.pid == os.getpid()
    assert process_start(me.pid) == me.started
    assert me == this_driver()


def test_a_zombie_and_an_ended_process_are_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert process_start(child.pid) is None
    child.communicate()
    assert process_start(child.pid) is None


@pytest.mark.parametrize(
    ("kill", "decision"),
    [(PermissionError, LeaseDecision.WATCH), (ProcessLookupError, LeaseDecision.TAKE)],
)
def test_a_holder_hidden_from_this_user_is_watched(
    kill: type[OSError], decision: LeaseDecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With /proc mounted with ``hidepid``, another user's process is not found, though it lives."""
    me = this_driver()
    holder = dataclasses.replace(me, pid=me.pid + 1)
    lease = Lease(driver=holder, token="t", beat=1, since="", seconds=20.0, driven=0.0)

    def refuse(pid: int, signal: int) -> None:
        assert (pid, signal) == (holder.pid, 0)
        raise kill

    def miss(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", miss)
    monkeypatch.setattr(os, "kill", refuse)
    assert decide_lease(lease, me, process_start) is decision


def test_a_process_whose_start_may_not_be_read_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", refuse)
    started = process_start(os.getpid())
    assert started is not None
    assert math.isnan(started)
