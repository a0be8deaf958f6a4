"""A real `mlflow server` that starts late, is killed, hangs or refuses: all updates arrive once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tests.waiting import wait_until
from tune_rescon.tracking import MlflowWriter

SendSearch = Callable[[MlflowWriter, Callable[[], object]], int]
AssertComplete = Callable[[str], None]

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    server = MlflowServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def writer(server: MlflowServer, make_fast_writer: Callable[[str], MlflowWriter]) -> MlflowWriter:
    return make_fast_writer(server.uri)


def test_all_updates_arrive_after_the_server_started_late_and_was_killed(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: AssertComplete
) -> None:
    def halfway() -> None:
        wait_until(lambda: writer.last_error != "")  # a call before the server's start has failed
        assert writer.opened_runs() == []
        server.start()
        wait_until(lambda: writer.opened_runs() != [])  # some updates have been sent
        server.kill()

    send_search(writer, halfway)
    assert writer.pending_updates > 0
    server.start()
    assert writer.close(200) == 0
    assert_complete(server.uri)


@pytest.mark.nightly
def test_all_updates_arrive_after_the_server_hung(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: AssertComplete
) -> None:
    server.start()
    send_search(writer, server.freeze)
    wait_until(lambda: writer.last_error != "")
    server.thaw()
    assert writer.close(200) == 0
    assert writer.last_error == ""
    assert_complete(server.uri)


@pytest.mark.nightly
def test_all_updates_arrive_after_the_server_allows_this_host(
    server: MlflowServer, writer: MlflowWriter, send_search: SendSearch, assert_complete: AssertComplete
) -> None:
    server.start("--allowed-hosts", "elsewhere.example", wait=False)
    send_search(writer, lambda: None)
    wait_until(lambda: "403" in writer.last_error)
    server.kill()
    server.start()
    assert writer.close(200) == 0
    assert_complete(server.uri)
