"""A real `mlflow server` that starts late, is killed, hangs or refuses: all updates arrive once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tune_rescon.tracking import MlflowWriter

SendSearch = Callable[[MlflowWriter, Callable[[], object]], tuple[int, float]]
Complete = Callable[[str], None]

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    made = MlflowServer(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def writer(server: MlflowServer, make_fast_writer: Callable[[str], MlflowWriter]) -> MlflowWriter:
    return make_fast_writer(server.uri)


def test_all_updates_arrive_after_the_server_starts_late(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: Complete
) -> None:
    shown, slowest = send_search(writer, lambda: None)
    assert slowest < 1
    assert writer.pending_updates == shown
    server.start()
    assert writer.close(200) == 0
    assert_complete(server.uri)


def test_all_updates_arrive_after_the_server_was_killed(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: Complete
) -> None:
    server.start()

    def halfway() -> None:
        time.sleep(0.5)  # Some of it has been sent, some is under way.
        server.kill()

    _, slowest = send_search(writer, halfway)
    assert slowest < 1
    assert writer.pending_updates > 0
    server.start()
    assert writer.close(200) == 0
    assert_complete(server.uri)


@pytest.mark.nightly
def test_all_updates_arrive_after_the_server_hung(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: Complete
) -> None:
    server.start()
    _, slowest = send_search(writer, server.freeze)
    assert slowest < 1
    time.sleep(3)
    assert writer.last_error
    server.thaw()
    assert writer.close(200) == 0
    assert writer.last_error == ""
    assert_complete(server.uri)


@pytest.mark.nightly
def test_all_updates_arrive_after_the_server_allows_this_host(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: Complete
) -> None:
    server.start("--allowed-hosts", "elsewhere.example", wait=False)
    send_search(writer, lambda: None)
    for _ in range(600):
        if "403" in writer.last_error:
            break
        time.sleep(0.1)
    assert "403" in writer.last_error
    server.kill()
    server.start()
    assert writer.close(200) == 0
    assert_complete(server.uri)
