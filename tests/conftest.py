"""Shared by all tests: time limits by marker, the reference data beside the checkout, an S3 server."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import urllib.request
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tune_rescon.command import progress_shown

if TYPE_CHECKING:
    from alembic.config import Config

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

#: Wall-clock limit of a marked test in seconds. The first marker in this order counts.
TIMEOUTS = {"ray": 600, "browser": 120, "torch": 120, "server": 120, "s3": 30}

#: The wall-clock limit ends a test that hangs. A busy machine is several times slower, so limits are
#: multiplied by this factor, up to a number of seconds.
SLOWDOWN, LONGEST_BY_SLOWDOWN = 4, 600

#: Limit of a quick test in seconds of processor time, which does not depend on the machine's load. A slow
#: processor may need two and a half times as long as a fast one.
QUICK_SECONDS = 5.0

# Tests have limits already. Hypothesis's limit of 0.2 seconds an example fails on a busy machine.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")


# Tests that a shell starts in the background ignore Ctrl-C, and with nohup SIGHUP. Child processes inherit
# both.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_sessionfinish() -> None:
    # Some libraries warn at exit about frozen objects that cannot be freed.
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # Nearly all objects that imports create stay, so that a search for garbage among them only takes time.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    # The tests have no doctests. To look for them in each file takes seconds.
    collectors = yield
    return [collector for collector in collectors if type(collector) is pytest.Module]


@pytest.hookimpl(tryfirst=True)  # -m deselects in this hook too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, seconds in TIMEOUTS.items():
            if item.get_closest_marker(marker) and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(seconds))
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.quick)
    # The longest files come first, so that the test processes end at about the same time.
    longest: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, 0), limit.args[0] if limit else 0)
        if limit:
            marked = limit.args[0]
            seconds = max(marked, min(SLOWDOWN * marked, LONGEST_BY_SLOWDOWN))
            item.add_marker(pytest.mark.timeout(seconds), append=False)
    items.sort(key=lambda item: -longest[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with processor_time_limit(QUICK_SECONDS) if item.get_closest_marker("quick") else nullcontext():
        return (yield)


@contextmanager
def processor_time_limit(seconds: float) -> Iterator[None]:
    """Fail the test after the given seconds of this process's time, user and system, all threads."""

    def fail(*_: object) -> None:
        pytest.fail(f"a quick test may take {seconds:g} s of processor time; a slower kind needs its marker")

    before = signal.signal(signal.SIGPROF, fail)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module", autouse=True)
def _freeze_garbage() -> None:
    """Collect garbage before each file, and exclude what is left from later collections.

    Otherwise a full collection falls within some test's time limit. It takes seconds there, because it visits
    the libraries' hundreds of thousands of objects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waits_for_the_disk() -> Iterator[None]:
    """Write without waiting until the disk has the data, because no test cuts the power.

    Otherwise a transaction of SQLite waits for tens of milliseconds. A test can still replace ``os.fsync``.
    """
    # Imported here: the process that only distributes the tests does not need it.
    import sqlalchemy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        sqlalchemy.event.listen(sqlalchemy.Pool, "connect", _without_waits)
        yield
        sqlalchemy.event.remove(sqlalchemy.Pool, "connect", _without_waits)


def _without_waits(connection: object, _: object) -> None:
    if not isinstance(connection, sqlite3.Connection):
        return
    # The setting reads the database, which another connection may have locked, and which may be damaged.
    (patience_ms,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0")
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA busy_timeout = {patience_ms}")


@pytest.fixture(scope="session", autouse=True)
def _migrations_are_read_once() -> Iterator[None]:
    """Read the migration scripts of Optuna and of MLflow once.

    Otherwise each connection to a study reads ten files, and each connection to an MLflow store seventy, to
    find out which is the newest.
    """
    from alembic.script import ScriptDirectory

    read, known = ScriptDirectory.from_config, dict[str | None, ScriptDirectory]()

    def read_once(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in known:
            known[location] = read(config)
        return known[location]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", staticmethod(read_once))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, logits and images. The test is skipped if it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the shared reference folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A directory whose path leaves room for Ray's sockets (107 characters in all)."""
    with tempfile.TemporaryDirectory(prefix="tr-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def progress() -> Iterator[list[str]]:
    """The progress messages, in order."""
    lines: list[str] = []
    with progress_shown(lines.append):
        yield lines


@pytest.fixture
def without_ray(empty_store: Path) -> Iterator[None]:
    """Run the trials of searches, and the calls to MLflow, in this process."""
    # Imported here: it imports Ray, which most tests do not need.
    from tests.without_ray import search_without_ray

    with search_without_ray(empty_store):
        yield


@pytest.fixture
def without_ray_and_mlflow() -> Iterator[None]:
    """Run the trials of searches in this process, and log nothing to MLflow."""
    # Imported here: it imports Ray, which most tests do not need.
    from tests.without_ray import search_without_ray

    with search_without_ray(mlflow=False):
        yield


@pytest.fixture
def without_export() -> Iterator[None]:
    """Register an empty model for every winner, because torch needs seconds to export a network."""
    # Imported here: it imports MLflow, which most tests do not need.
    from tests.mlflow_in_process import no_network_exported

    with no_network_exported():
        yield


@pytest.fixture(scope="session")
def run_driver(short_tmp: Path) -> Callable[..., dict[str, Any]]:
    """Runs a script that starts its own Ray cluster, and returns the JSON object that it prints."""

    def run(script: str, *arguments: str) -> dict[str, Any]:
        ray_folder = Path(tempfile.mkdtemp(prefix="", dir=short_tmp))
        process = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "RAY_TMPDIR": str(ray_folder), "RAY_USAGE_STATS_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        # Ray prints messages, too.
        (line,) = [line for line in process.stdout.splitlines() if line.startswith("{")]
        result: dict[str, Any] = json.loads(line)
        return result

    return run


@pytest.fixture
def limit_file_size() -> Callable[[int], AbstractContextManager[None]]:
    """Limits the size of files that this process writes within a block, which simulates a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``best.ckpt`` of a small network with three classes."""
    # Imported here: they import torch, which most tests do not need.
    import torch

    from tune_rescon.config import TrialConfig
    from tune_rescon.models import build_from_spec, resolve_network
    from tune_rescon.training.weights import TrainedNetwork, trained_values

    config = TrialConfig(layout="cifar", depth=56, width=0.125, image_size=16)
    spec = resolve_network(config, classes=3, in_channels=3)
    trained = TrainedNetwork(
        spec=spec,
        config=config,
        class_names=("ant", "bee", "cat"),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        dataset="0123",
        seed=0,
        epoch=3,
        metrics={"val_accuracy": 0.9},
    )
    torch.manual_seed(0)
    network = build_from_spec(spec)
    with torch.no_grad():
        # Update the batch norm statistics. Without them one class gets all the probability for any image.
        for _ in range(40):
            network((torch.rand(32, 3, 16, 16) - 0.5) / 0.3)
    path = tmp_path_factory.mktemp("winner") / "best.ckpt"
    torch.save(trained_values(network, trained), path)
    return path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database to copy, because its migrations take seconds. Test processes share it."""
    # Imported here: the import takes seconds, and most tests do not need MLflow.
    from tune_rescon.tracking.worker import alone_at, make_local_store

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with alone_at(uri):
        make_local_store(uri)
    return folder / "mlflow.db"


def accept_all(_method: str, _path: str) -> bool:
    """Reject no request."""
    return False


class S3Server:
    """moto's S3 server in a thread of this process. It can be made to reject requests."""

    def __init__(self) -> None:
        # Imported here: the imports take a second, and most tests do not need S3.
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.should_reject: Callable[[str, str], bool] = accept_all
        """Whether a request with this method and path is answered with status 503."""
        self.rejected = 0
        """Number of rejected requests."""
        threading.Thread(target=self._server.serve_forever, name="s3", daemon=True).start()

    def bucket(self) -> str:
        """Create a bucket and return its URL."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{name}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.should_reject(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            self.rejected += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


@pytest.fixture(scope="session")
def _s3_running() -> Iterator[S3Server]:
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        # Subprocesses inherit these variables.
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        yield server
    server.stop()


@pytest.fixture
def s3(_s3_running: S3Server) -> Iterator[S3Server]:
    """An S3 server that rejects no request unless a test makes it."""
    yield _s3_running
    _s3_running.should_reject = accept_all
    _s3_running.rejected = 0
