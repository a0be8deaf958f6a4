"""Whether the process that holds a lease is alive, by its number and its start."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from tune_rescon.tuning.lease import process_start, this_driver


def test_this_process_is_found_alive() -> None:
    me = this_driver()
    assert me.pid == os.getpid()
    assert process_start(me.pid) == me.started
    assert me == this_driver()


def test_a_zombie_and_a_process_that_was_are_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(child.pid) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    assert process_start(child.pid) is None
    child.communicate()
    assert process_start(child.pid) is None
