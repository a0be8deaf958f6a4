"""A Ray that answers, hangs, raises or has died: the gauge can be read at once."""

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


def alive() -> str:
    return ""


def test_the_last_answer_is_returned() -> None:
    answers = chain([SIZE], repeat(ClusterSize(nodes=3, gpus=12, cpus=96)))
    with sampled_cluster(alive, ask=lambda: next(answers), every=0.01) as size:
        wait_until(lambda: size() == ClusterSize(nodes=3, gpus=12, cpus=96))


def test_the_cluster_is_not_polled_before_the_first_read() -> None:
    asked = threading.Event()

    def ask() -> ClusterSize:
        asked.set()
        return SIZE

    with sampled_cluster(alive, ask=ask, every=0.01):
        assert not asked.wait(0.05)


def test_a_hanging_poll_does_not_block_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL_TIMEOUT", 0.05)
    release = threading.Event()

    def hang() -> ClusterSize:
        release.wait()
        return SIZE

    begun = time.monotonic()
    with sampled_cluster(alive, ask=hang) as size:
        assert size() is None
    assert time.monotonic() - begun < 30
    release.set()


def test_a_failed_poll_is_repeated() -> None:
    errors = [RuntimeError("the control store is busy")]

    def ask() -> ClusterSize:
        if errors:
            raise errors.pop()
        return SIZE

    with sampled_cluster(alive, ask=ask, every=0.01) as size:
        wait_until(lambda: size() == SIZE)


def test_a_dead_ray_is_not_polled() -> None:
    gone = ""
    asked = 0

    def ask() -> ClusterSize:
        nonlocal asked
        asked += 1
        return SIZE

    with sampled_cluster(lambda: gone, ask=ask, every=0.01) as size:
        wait_until(lambda: size() == SIZE)
        gone = "its node manager (raylet)"
        wait_until(lambda: size() is None)
        before = asked
        time.sleep(0.05)
        assert asked == before
