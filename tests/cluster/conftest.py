"""The network of a story, and what its phases took."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.lab.cloud import CREDENTIALS
from tests.cluster.lab.hosts import Network
from tests.cluster.lab.operator import Clock

#: What an image brings for machines as small as these: little shared memory, and quick looks at what is gone.
IMAGE = {
    **CREDENTIALS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "150000000",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
}


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
def clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    clock = Clock()
    yield clock
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    reporter.write_line("")
    reporter.write_line(clock.table(request.module.__doc__.splitlines()[0]))
