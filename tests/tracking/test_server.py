"""A real `mlflow server`, late, killed, frozen and shy: what it shows in the end is complete, and once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tests.waiting import wait_until
from tune_rescon.tracking import MlflowWriter

Play = Callable[[MlflowWriter, Callable[[], object]], int]
Complete = Callable[[str], None]

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    made = MlflowServer(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def sender(server: MlflowServer, make_sender: Callable[[str], MlflowWriter]) -> MlflowWriter:
    return make_sender(server.uri)


def test_one_that_comes_up_late_gets_it_all(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    shown = play(sender, lambda: None)
    assert sender.waiting == shown
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)


def test_one_that_is_killed_amid_the_search_gets_it_all(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    server.start()

    def halfway() -> None:
        wait_until(lambda: sender.opened_runs() != [])  # Some of it has been sent, some is under way.
        server.kill()

    play(sender, halfway)
    assert sender.waiting > 0
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)


@pytest.mark.nightly
def test_one_that_hangs_for_a_while_gets_it_all(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    server.start()
    play(sender, server.freeze)
    wait_until(lambda: sender.last_error != "")
    server.thaw()
    assert sender.close(200) == 0
    assert sender.last_error == ""
    assert_complete(server.uri)


@pytest.mark.nightly
def test_one_that_does_not_know_this_host_gets_it_all_once_it_does(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    server.start("--allowed-hosts", "elsewhere.example", wait=False)
    play(sender, lambda: None)
    wait_until(lambda: "403" in sender.last_error)
    server.kill()
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)
