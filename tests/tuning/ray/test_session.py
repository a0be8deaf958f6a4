"""The start of Ray and its environment, and the sampling of the cluster's size. Few tests start a Ray."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

import pytest

from tests.waiting import wait_until
from tune_rescon.errors import ClusterError, ConfigError
from tune_rescon.tuning import ClusterSize
from tune_rescon.tuning.ray import session
from tune_rescon.tuning.ray.session import (
    LONGER_START,
    _connect,
    check_temp_dir,
    prepare_environment,
    ray_session,
    sampled_cluster,
    start_or_retry,
)

(SETTING,) = LONGER_START


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(("characters", "fits"), [(39, True), (40, False), (110, False)])
def test_a_temp_dir_too_long_for_rays_sockets_is_refused(name: str, characters: int, fits: bool) -> None:
    folder = "/" + "x" * (characters - 1)
    # The path that Ray creates, with a process number of seven digits.
    socket = f"{folder}/ray/session_2026-11-29_01-02-03_123456_1234567/sockets/plasma_store"
    assert fits == (len(socket) <= 107)
    if fits:
        check_temp_dir({name: folder}, pid=1234567)
        return
    with pytest.raises(ConfigError, match=f"^{name}: must be a path of at most 39 bytes.*RAY_TMPDIR=/tmp"):
        check_temp_dir({name: folder}, pid=1234567)


def test_ray_tmpdir_takes_precedence_over_tmpdir() -> None:
    check_temp_dir({"TMPDIR": "/" + "x" * 110, "RAY_TMPDIR": "/tmp"}, pid=1)
    check_temp_dir({}, pid=1)


class FailingRay:
    """A Ray whose first ``failures`` starts fail."""

    def __init__(self, events: list[str], failures: int) -> None:
        self.failures = failures
        self.events = events

    def start(self) -> None:
        self.events.append(f"start {os.environ.get(SETTING)}")
        if self.failures:
            self.failures -= 1
            raise Exception("The current node timed out during startup.\nThis could happen because")

    def clean_up(self) -> None:
        self.events.append("clean up")


@pytest.fixture(autouse=True)
def without_longer_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETTING, raising=False)


RETRY_MESSAGE = "Ray did not start (The current node timed out during startup); trying once more"


def test_a_ray_that_starts_is_started_once(progress: list[str]) -> None:
    ray = FailingRay(progress, failures=0)
    start_or_retry(ray.start, ray.clean_up)
    assert ray.events == ["start None"]


def test_a_failed_start_is_retried_with_a_longer_limit(progress: list[str]) -> None:
    ray = FailingRay(progress, failures=1)
    start_or_retry(ray.start, ray.clean_up)
    assert ray.events == ["start None", "clean up", RETRY_MESSAGE, "start 120"]
    assert SETTING not in os.environ


def test_two_failed_starts_are_one_error(progress: list[str]) -> None:
    ray = FailingRay(progress, failures=2)
    with pytest.raises(ClusterError) as caught:
        start_or_retry(ray.start, ray.clean_up)
    message = str(caught.value)
    assert message.startswith(
        "Ray must start on this machine, but got two failures (The current node timed out"
    )
    assert "\n" not in message
    assert ray.events == ["start None", "clean up", RETRY_MESSAGE, "start 120", "clean up"]


def test_a_limit_set_by_the_user_is_kept(progress: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "600")
    ray = FailingRay(progress, failures=1)
    start_or_retry(ray.start, ray.clean_up)
    assert ray.events[-1] == "start 600"
    assert os.environ[SETTING] == "600"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_retried(progress: list[str], error: type[BaseException]) -> None:
    def start() -> None:
        raise error

    ray = FailingRay(progress, failures=0)
    with pytest.raises(error):
        start_or_retry(start, ray.clean_up)
    assert ray.events == []


class FakeRay:
    """A Ray whose start creates a process in its own session."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str, **_: object) -> None:
        if address == "local":
            self.processes.append(start_sleeping_process())

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="10.0.0.1:6379")

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def nodes(self) -> list[dict[str, Any]]:
        return []

    def shutdown(self) -> None:
        pass


def start_sleeping_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], start_new_session=True)


@pytest.mark.parametrize(("address", "started"), [(None, 1), ("head:6379", 0)])
def test_only_rays_own_processes_are_ended(
    address: str | None, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(session, "autoscaler_limits", lambda: None)
    with ray_session(address):
        other = start_sleeping_process()
    try:
        assert [process.poll() is None for process in ray.processes] == [False] * started
        assert other.poll() is None, "processes of the program are not ended"
    finally:
        other.kill()
        other.wait()


def test_an_unreachable_cluster_is_reported_in_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str, **_: object) -> None:
        raise ConnectionError(f"Ray is not at {address}.\nTraceback of another process")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(ClusterError) as caught:
        _connect("head:6379")
    message = str(caught.value)
    assert message.startswith("--address: must be the address of a Ray cluster that can be reached, but got")
    assert "(Ray is not at head:6379)" in message
    assert "\n" not in message


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]


@pytest.mark.usefixtures("empty_environment")
def test_a_local_ray_gets_its_own_token() -> None:
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_prestart_worker_first_driver"] == "0"  # noqa: SIM112  # Ray's own spelling


@pytest.mark.usefixtures("empty_environment")
def test_a_cluster_keeps_its_own_mode() -> None:
    prepare_environment(own_ray=False)
    assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_prestart_worker_first_driver" not in os.environ


@pytest.mark.usefixtures("empty_environment")
def test_variables_set_by_the_user_are_kept() -> None:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="1")
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


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
