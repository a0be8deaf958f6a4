"""The network of a story, and what its phases took."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.lab.cloud import CREDENTIALS, Cloud, make_bucket
from tests.cluster.lab.hosts import Network
from tests.cluster.lab.operator import ROOT, Clock

#: What an image brings for machines as small as these: little shared memory, and quick looks at what is gone.
IMAGE = {
    **CREDENTIALS,
    # The package of this checkout, whichever one the environment has installed.
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "150000000",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
}


#: The stories' clocks, by title.
CLOCKS = pytest.StashKey[dict[str, Clock]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("hosts") and "TUNE_RESCON_LAB" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs namespaces of its own: make cluster-test"))


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
def clock(request: pytest.FixtureRequest) -> Clock:
    title = request.module.__doc__.splitlines()[0]
    return request.config.stash.setdefault(CLOCKS, {}).setdefault(title, Clock())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, clock in config.stash.get(CLOCKS, {}).items():
        terminalreporter.write_line("")
        terminalreporter.write_line(clock.table(title))
