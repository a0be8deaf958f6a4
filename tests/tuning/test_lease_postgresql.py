"""A study on PostgreSQL: a real server on a Unix socket, started by this test."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy

from tests.tuning.rival_drivers import assert_old_leases_are_respected, assert_one_wins
from tests.waiting import wait_until
from tune_rescon.errors import StorageError
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import (
    RunOptions,
    SearchLocation,
    SearchState,
    list_searches,
    read_search,
    run_search,
)
from tune_rescon.tuning.driver import Driver
from tune_rescon.tuning.lease import LeaseKeeper
from tune_rescon.tuning.study_lease import StudyLeaseStore

pytestmark = pytest.mark.server


def binaries() -> Path:
    """The folder of PostgreSQL's programs. Debian keeps them outside of PATH."""
    candidates = [*Path("/usr/lib/postgresql").glob("*/bin/initdb"), *Path("/usr/pgsql").glob("bin/initdb")]
    if path := shutil.which("initdb"):
        candidates.append(Path(path).resolve())
    if not candidates:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return candidates[-1].parent


@pytest.fixture(scope="module")
def connections() -> Iterator[list[Any]]:
    """All connections to a database. Optuna's storages have no `close`, and leave theirs open."""
    opened_connections: list[Any] = []

    def record_connection(connection: object, _: object) -> None:
        opened_connections.append(connection)

    sqlalchemy.event.listen(sqlalchemy.Pool, "connect", record_connection)
    yield opened_connections
    sqlalchemy.event.remove(sqlalchemy.Pool, "connect", record_connection)


@pytest.fixture(scope="module")
def url(connections: list[Any]) -> Iterator[str]:
    """The URL of a new, empty server."""
    programs = binaries()
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'tune_rescon[postgresql]'")
    # PostgreSQL refuses to run as root. A socket's path is short.
    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pg-") as scratch:
        if user:
            shutil.chown(scratch, nobody.pw_uid)
        data = Path(scratch) / "data"
        create = ["initdb", "-D", str(data), "-U", "tester", "-A", "trust", "--no-sync"]
        create += ["--locale=C", "--encoding=UTF8"]
        subprocess.run(
            [programs / create[0], *create[1:]], check=True, stdout=subprocess.DEVNULL, cwd=scratch, **user
        )
        serve = ["-D", str(data), "-k", scratch, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = (Path(scratch) / "log").open("wb")
        with (
            log,
            subprocess.Popen(
                [programs / "postgres", *serve], stdout=log, stderr=log, cwd=scratch, **user
            ) as server,
        ):
            try:
                wait_for(server, programs / "pg_isready", scratch)
                yield f"postgresql://tester@/postgres?host={scratch}"
            finally:
                for connection in connections:
                    connection.close()
                server.send_signal(signal.SIGINT)  # a fast end: it does not wait for connections


def wait_for(server: subprocess.Popen[bytes], is_ready: Path, socket: str) -> None:
    def is_accepting() -> bool:
        assert server.poll() is None, (Path(socket) / "log").read_text()
        return subprocess.run([is_ready, "-q", "-h", socket], check=False).returncode == 0

    wait_until(is_accepting, every=0.05)


def test_of_several_drivers_at_once_one_has_the_lease(url: str) -> None:
    assert_one_wins(url, rounds=10)


def test_leases_of_earlier_versions_are_respected(url: str) -> None:
    assert_old_leases_are_respected(url)


@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_search_and_its_resume_use_a_postgresql_study(url: str, tmp_path: Path) -> None:
    options = RunOptions(name="s", storage=tmp_path / "runs", cache_root=tmp_path / "cache", study_url=url)
    for trials in (1, 2):
        space = load_space("digits", [f"budget.trials={trials}", "budget.concurrent=1"])
        run_options = dataclasses.replace(options, resume=trials > 1)
        result = run_search(space, run_options, trainable=learn_nothing)
        assert [trial.number for trial in result.trials] == list(range(trials))
        assert all(trial.epochs for trial in result.trials)
    location = SearchLocation(storage=options.storage, study_url=url)
    assert read_search(location, "s").trials == result.trials
    assert_a_copied_folder_is_refused(space, options)
    assert read_search(location, "s").trials == result.trials
    assert_a_silent_driver_elsewhere_is_dead(location, "s")


def assert_a_copied_folder_is_refused(space: Space, options: RunOptions) -> None:
    """It would add trials to the study of its original, which is on the server and not in the folder."""
    assert isinstance(options.storage, Path)
    copies = options.storage.with_name("copies")
    shutil.copytree(options.storage / options.name, copies / options.name)
    with pytest.raises(StorageError, match=r"driven from one folder.* a copy of the search in .*/runs/s\."):
        run_search(space, dataclasses.replace(options, storage=copies, resume=True), trainable=learn_nothing)


def assert_a_silent_driver_elsewhere_is_dead(location: SearchLocation, name: str) -> None:
    """A report does not see that process. The server says how long ago its last beat was."""
    assert location.study_url is not None
    elsewhere = Driver(host="there", place="there 1", pid=2, started=5.0)
    store = StudyLeaseStore.open(location.study_url, name)
    LeaseKeeper(store, name=name, me=elsewhere, clock=time.monotonic).take()

    def states() -> set[SearchState | None]:
        return {read_search(location, name).state, *(line.state for line in list_searches(location))}

    assert states() == {SearchState.RUNNING}
    study = optuna.load_study(study_name=name, storage=location.study_url)
    beat = study.user_attrs["lease_beat"]
    minute_ago = datetime.fromisoformat(beat["time"]) - timedelta(minutes=1)
    study.set_user_attr("lease_beat", {**beat, "time": minute_ago.isoformat()})
    assert states() == {SearchState.FINISHED}
    study.set_user_attr("lease_beat", {**beat, "token": "of an earlier holder", "time": "2026-01-01"})
    assert states() == {SearchState.RUNNING}, "the holder is of an earlier version, which writes no times"
