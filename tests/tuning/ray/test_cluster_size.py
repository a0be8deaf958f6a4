"""Sampling of the cluster's size from a Ray that responds, hangs, raises or has died."""

from __future__ import annotations

import threading
import time
from itertools import chain, repeat

import pytest

from tests.waiting import wait_until
from tune_rescon.tuning import ClusterSize
from tune_rescon.tuning.ray import session
from tune_rescon.tuning.ray.session import sampled_cluster

SIZE = ClusterSize(nodes=2, gpus=8, cpus=64)


def no_dead_process() -> str:
    return ""


def test_the_last_answer_is_returned() -> None:
    sizes = chain([SIZE], repeat(ClusterSize(nodes=3, gpus=12, cpus=96)))
    with sampled_cluster(no_dead_process, ask=lambda: next(sizes), every=0.01) as size:
        wait_until(lambda: size() == ClusterSize(nodes=3, gpus=12, cpus=96))


def test_the_cluster_is_not_polled_before_the_first_read() -> None:
    polled = threading.Event()

    def poll() -> ClusterSize:
        polled.set()
        return SIZE

    with sampled_cluster(no_dead_process, ask=poll, every=0.01):
        assert not polled.wait(0.05)


def test_a_hanging_poll_does_not_block_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL_TIMEOUT", 0.05)
    release = threading.Event()

    def hang() -> ClusterSize:
        release.wait()
        return SIZE

    start = time.monotonic()
    with sampled_cluster(no_dead_process, ask=hang) as size:
        assert size() is None
    assert time.monotonic() - start < 30
    release.set()


def test_a_failed_poll_is_repeated() -> None:
    errors = [RuntimeError("the control store is busy")]

    def poll() -> ClusterSize:
        if errors:
            raise errors.pop()
        return SIZE

    with sampled_cluster(no_dead_process, ask=poll, every=0.01) as size:
        wait_until(lambda: size() == SIZE)


def test_a_dead_ray_is_not_polled() -> None:
    dead_process = ""
    polls = 0

    def poll() -> ClusterSize:
        nonlocal polls
        polls += 1
        return SIZE

    with sampled_cluster(lambda: dead_process, ask=poll, every=0.01) as size:
        wait_until(lambda: size() == SIZE)
        dead_process = "its node manager (raylet)"
        wait_until(lambda: size() is None)
        polls_before = polls
        time.sleep(0.05)
        assert polls == polls_before
