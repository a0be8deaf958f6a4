"""What recording in MLflow costs a search: no-op trials, so that nothing hides it.

Each search runs 200 trials of 5 epochs that train nothing, two at once, in a process of its own, in turn:
without MLflow, with this package's writer (SQLite, and a real `mlflow server`), and plain Ray Tune without
MLflow and with its MLflowLoggerCallback. The figure is the time from the first trial's start to the last
one's end; the lag is what the writer still takes after that. `--outage` has a server SIGKILLed for a minute
in the middle of a search of slower epochs, beside an undisturbed one, and counts what the server has then.

    python benchmarks/tracking.py [--rounds 3] [--trials 200]
    python benchmarks/tracking.py --outage
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EPOCHS = 5
SLOTS = 2

#: Seconds of an epoch beside an outage, and of the outage.
PACE = 0.3
OUTAGE = 60.0


def main() -> None:
    """Run what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--outage", action="store_true", help="a server killed for a minute")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    parser.add_argument("--pace", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.folder, options.trials, options.uri, options.pace)))
    elif options.outage:
        _outage(options.trials)
    else:
        _rounds(options.rounds, options.trials)


class Silent:
    """Stands where the writer would: MLflow is told nothing."""

    uri = "none"
    waiting = 0

    def start(self) -> None:
        """Nothing to begin."""

    def show(self, view: object) -> None:
        """Nobody is shown anything."""

    def opened_runs(self) -> list[tuple[int, str]]:
        """None."""
        return []

    def close(self, _timeout: float) -> int:
        """Nothing is left."""
        return 0


class Clock:
    """Hears when the first trial starts and the last one ends."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.ended = 0.0

    def search_started(self, trials: object) -> None:
        """Not yet."""

    def trial_started(self, _trial: object) -> None:
        """The first one counts."""
        self.began = self.began or time.monotonic()

    def epoch_done(self, trial: object, metrics: Mapping[str, float], verdict: object) -> None:
        """In between."""

    def trial_noted(self, trial: object, text: str) -> None:
        """In between."""

    def trial_ended(self, _trial: object) -> None:
        """The last one counts."""
        self.ended = time.monotonic()


def _ours(folder: Path, trials: int, uri: str | None, pace: float) -> dict[str, float]:
    from tune_rescon.spaces import load_space
    from tune_rescon.tracking import Destination, MlflowWriter
    from tune_rescon.tuning import RunOptions, run_search, runner

    lag = 0.0

    class Timed(MlflowWriter):
        def close(self, timeout: float) -> int:
            nonlocal lag
            # Not the champion's export, which a search of trials that train something has.
            began = time.monotonic()
            left = super().close(timeout)
            lag = max(lag, time.monotonic() - began)
            return left

    @contextmanager
    def writer(destination: Destination) -> Iterator[MlflowWriter | Silent]:
        made = Silent() if uri == "none" else Timed(destination)
        made.start()
        try:
            yield made
        finally:
            made.close(0)

    runner.mlflow_writer = writer
    settings = ["sampler.type=random", "scheduler.type=none", f"budget.trials={trials}"]
    settings += [f"budget.concurrent={SLOTS}", f"fidelity.max={EPOCHS}"]
    clock = Clock()
    options = RunOptions(
        name="s", storage=folder, cache_root=folder / "cache", tracking_uri=None if uri == "none" else uri
    )

    def learn(config: dict[str, Any]) -> None:
        from tune_rescon.testing import trainables

        trainables.SLOW_EPOCH = pace
        trainables.learn_slowly(config)

    run_search(load_space("digits", settings), options, listeners=[clock], trainable=learn)
    assert clock.began is not None
    return {"seconds": clock.ended - clock.began, "lag": lag}


def _plain(folder: Path, trials: int, uri: str | None, pace: float) -> dict[str, float]:
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    began: list[float] = []
    ended: list[float] = []

    class Times(tune.Callback):
        def on_trial_start(self, *_: object, **__: object) -> None:
            began.append(time.monotonic())

        def on_trial_complete(self, *_: object, **__: object) -> None:
            ended.append(time.monotonic())

    def learn(config: dict[str, Any]) -> None:
        for epoch in range(1, EPOCHS + 1):
            time.sleep(pace)
            metrics = dict.fromkeys(METRICS, 1.0 - config["learning_rate"])
            tune.report({**metrics, "epoch": epoch})

    callbacks: list[tune.Callback] = [Times()]
    if uri != "none":
        callbacks.append(MLflowLoggerCallback(tracking_uri=uri, experiment_name="plain"))
    ray.init(include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        tune.with_resources(learn, {"cpu": 1}),
        param_space={
            "learning_rate": tune.uniform(0.0, 1.0),
            "weight_decay": tune.uniform(0.0, 1.0),
            "label_smoothing": tune.uniform(0.0, 1.0),
        },
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=SLOTS, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(folder), callbacks=callbacks, verbose=0),
    ).fit()
    return {"seconds": max(ended) - min(began), "lag": 0.0}


#: What a trial of this package reports each epoch.
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5", "learning_rate")

SIDES = {"ours": _ours, "plain": _plain}


class Server:
    """A real `mlflow server` on one address and one database."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self._answers():
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, to all its processes."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
        except OSError:
            return False
        return True


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _run(side: str, folder: Path, trials: int, uri: str | None, *, pace: float = 0.0) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--trials", str(trials)]
    command += ["--pace", str(pace), *(["--uri", uri] if uri else [])]
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _rounds(rounds: int, trials: int) -> None:
    kinds = {
        "this package, no MLflow": ("ours", "none"),
        "this package, SQLite": ("ours", None),
        "this package, mlflow server": ("ours", "server"),
        "plain Ray Tune, no MLflow": ("plain", "none"),
        "plain Ray Tune, MLflowLoggerCallback, SQLite": ("plain", "sqlite"),
    }
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (side, store) in kinds.items():
            with _folder() as folder:
                figures[name].append(_one(side, store, folder, trials))
                print(f"{name}: {figures[name][-1]}", file=sys.stderr, flush=True)
    print(f"{trials} trials of {EPOCHS} epochs, {SLOTS} at once; {rounds} rounds, in turn\n")
    print("| search | seconds | of the same without MLflow | sent after its end, s |\n|---|---|---|---|")
    for name, (side, _) in kinds.items():
        base = figures[f"{'this package' if side == 'ours' else 'plain Ray Tune'}, no MLflow"]
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(figures[name], base, strict=True)]
        seconds = [one["seconds"] for one in figures[name]]
        lags = [one["lag"] for one in figures[name]]
        print(f"| {name} | {_spread(seconds)} | {_spread(ratios)} | {_spread(lags)} |")


def _one(side: str, store: str | None, folder: Path, trials: int) -> dict[str, float]:
    if store == "server":
        server = Server(folder)
        server.start()
        try:
            return _run(side, folder, trials, server.uri)
        finally:
            server.kill()
    uri = f"sqlite:///{folder / 'plain.db'}" if store == "sqlite" else store
    return _run(side, folder, trials, uri)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _outage(trials: int) -> None:
    for name, struck in (("undisturbed", False), ("killed for a minute", True)):
        with _folder() as folder:
            server = Server(folder)
            server.start()

            def strike(server: Server = server) -> None:
                # Of the search's seconds, a third; before it, Ray starts for about ten.
                time.sleep(10 + trials * EPOCHS * PACE / SLOTS / 3)
                server.kill()
                time.sleep(OUTAGE)
                server.start()

            striking = threading.Thread(target=strike)
            if struck:
                striking.start()
            figures = _run("ours", folder, trials, server.uri, pace=PACE)
            if struck:
                striking.join()
            print(f"{name}: {figures['seconds']:.1f} s, sent {figures['lag']:.1f} s after its end;", end=" ")
            print(_counted(server.uri, trials), flush=True)
            server.kill()


def _counted(uri: str, trials: int) -> str:
    """What the server has, against what it should have."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(ids) if "tune_rescon.trial" in run.data.tags]
    seen = Counter(
        point.step for run in runs for point in client.get_metric_history(run.info.run_id, "val_accuracy")
    )
    right = dict.fromkeys(range(1, EPOCHS + 1), trials)
    return f"{len(runs)} runs of {trials}; every epoch once: {dict(seen) == right}"


if __name__ == "__main__":
    main()
