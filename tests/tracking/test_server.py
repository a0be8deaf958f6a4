"""A real `mlflow server`, late, killed, frozen and shy: what it shows in the end is complete, and once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from tune_rescon.tracking import MlflowWriter

Play = Callable[[MlflowWriter, Callable[[], object]], tuple[int, float]]
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
    shown, slowest = play(sender, lambda: None)
    assert slowest < 1
    assert sender.waiting == shown
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)


def test_one_that_is_killed_amid_the_search_gets_it_all(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    server.start()

    def halfway() -> None:
        time.sleep(0.5)  # Some of it has been sent, some is under way.
        server.kill()

    _, slowest = play(sender, halfway)
    assert slowest < 1
    assert sender.waiting > 0
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)


@pytest.mark.nightly
def test_one_that_hangs_for_a_while_gets_it_all(
    server: MlflowServer, sender: MlflowWriter, play: Play, assert_complete: Complete
) -> None:
    server.start()
    _, slowest = play(sender, server.freeze)
    assert slowest < 1
    time.sleep(3)
    assert sender.last_error
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
    for _ in range(600):
        if "403" in sender.last_error:
            break
        time.sleep(0.1)
    assert "403" in sender.last_error
    server.kill()
    server.start()
    assert sender.close(200) == 0
    assert_complete(server.uri)
