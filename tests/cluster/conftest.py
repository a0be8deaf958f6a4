"""The network and the cloud of a scenario, and the duration of its phases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.lab.cloud import CREDENTIALS, Cloud, make_bucket
from tests.cluster.lab.cloud_file import write_one_worker_file
from tests.cluster.lab.hosts import Network
from tests.cluster.lab.operator import ROOT, PhaseTimer

#: Environment of the machine image: little shared memory, and lost nodes are detected quickly.
IMAGE = {
    **CREDENTIALS,
    # This checkout takes precedence over an installed package.
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "150000000",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
}

#: The timers of the scenarios, by title.
TIMERS = pytest.StashKey[dict[str, PhaseTimer]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("hosts") and "TUNE_RESCON_LAB" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs its own namespaces; run `make cluster-test`"))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network(IMAGE)
    network.start()
    yield network
    network.stop()


@pytest.fixture(scope="module")
def cloud(network: Network) -> Iterator[Cloud]:
    cloud = Cloud(network)
    cloud.start()
    make_bucket("lab")
    yield cloud
    cloud.stop()


@pytest.fixture(scope="module")
def file(cloud: Cloud) -> Path:
    """A cluster file with one worker. Some modules override this fixture."""
    del cloud
    return write_one_worker_file()


@pytest.fixture(scope="module")
def timer(request: pytest.FixtureRequest) -> PhaseTimer:
    title = request.module.__doc__.splitlines()[0]
    return request.config.stash.setdefault(TIMERS, {}).setdefault(title, PhaseTimer())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, timer in config.stash.get(TIMERS, {}).items():
        terminalreporter.write_line("")
        terminalreporter.write_line(timer.table(title))
