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
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow_server import MlflowServer
from overhead.load import Figures, Load
from overhead.side import Side, own_folder, run_side
from table import Row, hardware, print_rows, spread

EPOCHS = 5

#: Seconds of an epoch beside an outage, and of the outage.
PACE = 0.3
OUTAGE = 60.0

#: The targets: against the same search without MLflow, seconds that the rest takes after its end, and against
#: the undisturbed search.
COST_TARGET = 1.15
LAG_TARGETS = {"SQLite": 2.0, "mlflow server": 10.0}
OUTAGE_TARGET = 1.05

#: Each kind of search: whose it is, and where it is recorded (see ``Load.tracking``).
KINDS: Mapping[str, tuple[Side, str | None]] = {
    "this package, no MLflow": ("ours", "none"),
    "this package, SQLite": ("ours", None),
    "this package, mlflow server": ("ours", "server"),
    "plain Ray Tune, no MLflow": ("plain", "none"),
    "plain Ray Tune, MLflowLoggerCallback, SQLite": ("plain", None),
}


def main() -> None:
    """Run what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--outage", action="store_true", help="a server killed for a minute")
    options = parser.parse_args()
    print(hardware("cpu", "ray", "mlflow"))
    print_rows(_outage(options.trials) if options.outage else _rounds(options.rounds, options.trials))


def _rounds(rounds: int, trials: int) -> list[Row]:
    figures: dict[str, list[Figures]] = {name: [] for name in KINDS}
    for _ in range(rounds):
        for name, (side, store) in KINDS.items():
            with own_folder() as folder:
                figures[name].append(_one(side, store, folder, trials))
            print(f"{name}: {figures[name][-1]}", file=sys.stderr, flush=True)
    load = f"{trials} trials of {EPOCHS} epochs"
    rows = []
    for store in LAG_TARGETS:
        name = f"this package, {store}"
        rows.append(_cost(load, name, "this package, no MLflow", figures))
        lags = [one.lag for one in figures[name]]
        rows.append(
            Row(
                what=f"{load}, {name}: all sent after its end",
                measured=f"{spread(lags)} s, n = {rounds}",
                target=f"<= {LAG_TARGETS[store]:g} s",
                met=statistics.median(lags) <= LAG_TARGETS[store],
            )
        )
    rows.append(
        _cost(load, "plain Ray Tune, MLflowLoggerCallback, SQLite", "plain Ray Tune, no MLflow", figures)
    )
    return rows


def _cost(load: str, name: str, base: str, figures: Mapping[str, list[Figures]]) -> Row:
    seconds = [one.seconds for one in figures[name]]
    ratios = [one / other.seconds for one, other in zip(seconds, figures[base], strict=True)]
    ours = name.startswith("this package")
    return Row(
        what=f"{load}, {name}",
        measured=f"{spread(ratios)} x of without MLflow ({spread(seconds)} s), n = {len(ratios)}",
        target=f"<= {COST_TARGET:g} x" if ours else "beside it",
        met=statistics.median(ratios) <= COST_TARGET if ours else None,
    )


def _one(side: Side, store: str | None, folder: Path, trials: int) -> Figures:
    if store != "server":
        return run_side(side, Load(trials=trials, epochs=EPOCHS, tracking=store), folder)
    server = MlflowServer(folder)
    server.start()
    try:
        return run_side(side, Load(trials=trials, epochs=EPOCHS, tracking=server.uri), folder)
    finally:
        server.kill()


def _outage(trials: int) -> list[Row]:
    calm, _ = _struck(trials, by=None)
    struck, wrong = _struck(trials, by=OUTAGE)
    ratio = struck.seconds / calm.seconds
    what = f"{trials} trials of {EPOCHS} epochs of {PACE:g} s, the server killed for {OUTAGE:g} s"
    return [
        Row(
            what=what,
            measured=f"{ratio:.3f} x of the undisturbed search ({struck.seconds:.1f} s against"
            f" {calm.seconds:.1f}); the rest sent in {struck.lag:.1f} s; n = 1",
            target=f"<= {OUTAGE_TARGET:g} x",
            met=ratio <= OUTAGE_TARGET,
        ),
        Row(
            what=f"{what}: every run and epoch there",
            measured=wrong or f"{trials} runs, each epoch once",
            target="each once",
            met=not wrong,
        ),
    ]


def _struck(trials: int, by: float | None) -> tuple[Figures, str]:
    """A search whose server is killed for ``by`` seconds; what the server then lacks, or has too often."""
    with own_folder() as folder:
        server = MlflowServer(folder)
        server.start()

        def strike(seconds: float) -> None:
            # At a third of the search's time; before it, Ray starts for about ten seconds.
            time.sleep(10 + trials * EPOCHS * PACE / 2 / 3)
            server.kill()
            time.sleep(seconds)
            server.start()

        striking = threading.Thread(target=strike, args=(by,)) if by else None
        if striking:
            striking.start()
        load = Load(trials=trials, epochs=EPOCHS, pace=PACE, tracking=server.uri)
        figures = run_side("ours", load, folder)
        if striking:
            striking.join()
        print(f"{'struck' if by else 'undisturbed'}: {figures}", file=sys.stderr, flush=True)
        wrong = _wrong(server.uri, trials)
        server.kill()
        return figures, wrong


def _wrong(uri: str, trials: int) -> str:
    """What the server has otherwise than it should; empty if nothing."""
    client = mlflow.MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = [run for run in client.search_runs(ids) if "tune_rescon.trial" in run.data.tags]
    seen = Counter(
        point.step for run in runs for point in client.get_metric_history(run.info.run_id, "val_accuracy")
    )
    right = dict.fromkeys(range(1, EPOCHS + 1), trials)
    if len(runs) == trials and dict(seen) == right:
        return ""
    return f"{len(runs)} runs of {trials}, epochs {dict(seen)}"


if __name__ == "__main__":
    main()
