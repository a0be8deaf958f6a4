"""What a trial costs the driver as the study grows: asking, recording its epochs, telling; and a resume.

A search of cheap trials runs on a real SQLite study without Ray, up to the largest size. At each size the
next trials are timed, and the same is timed with plain Optuna (TPE with the same options, default SQLite
storage) on a copy of that very study. Prints a markdown table.

    python benchmarks/record_cost.py [--sizes 100,1000,10000] [--window 50]
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import psutil
from table import hardware

from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import Space, load_space, suggest
from tune_rescon.tuning import (
    Coordinator,
    Decision,
    SearchPlan,
    SearchSampler,
    StudyRecord,
    make_stopping_rule,
)
from tune_rescon.tuning.optuna_samplers import make_sampler

#: Six parameters, one of them conditional, and ASHA with rungs at 1, 3 and 9.
OVERRIDES = (
    "initial=[]",
    "budget.trials=1000000",
    "parameters.momentum={type: float, low: 0.8, high: 0.99}",
    "fixed={layout: cifar, width: 0.5, image_size: 16, warmup_epochs: 0.5}",
)
METRIC = "val_accuracy"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Milliseconds of one trial."""

    ask: float
    epoch: float
    tell: float
    whole: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="100,1000,10000", help="trials in the study")
    parser.add_argument("--window", type=int, default=50, help="trials timed at each size")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{hardware('cpu', 'optuna')}; medians (quartiles) of {options.window} trials, milliseconds\n")
    print("| trials | whose | ask | one epoch | tell | whole trial |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder), sizes, options.window)


def grow(folder: Path, sizes: list[int], window: int) -> None:
    space = load_space("digits", OVERRIDES)
    path = folder / "study.db"
    record = StudyRecord.create(f"sqlite:///{path}", "s", metric=METRIC, maximize=True, space="")
    search = ours(space, record)
    before = rss()
    for size in sizes:
        while len(record) < size:
            run(search)
        row(size, "this package", [run(search) for _ in range(window)])
        copy = folder / f"copy_{size}.db"
        shutil.copy(path, copy)
        row(size, "plain Optuna", list(plain(space, copy, min(window, 20))))
    epochs = sum(trial.epochs for trial in record.trials())
    print(f"\nMemory: {(rss() - before) / 1e6:.0f} MB more after {len(record)} trials and {epochs} epochs.")
    begun = time.perf_counter()
    again = StudyRecord.load(f"sqlite:///{path}", "s", metric=METRIC)
    ours(space, again).next_trial()
    print(f"Resume of {len(again) - 1} trials: {time.perf_counter() - begun:.1f} s to the next trial.")


def ours(space: Space, record: StudyRecord) -> Coordinator:
    return Coordinator(
        SearchPlan(total=space.budget.trials),
        record,
        make_stopping_rule(space),
        SearchSampler(space, existing_trials=record.trials()),
        prune=lambda *_: None,
    ).start()


def run(search: Coordinator) -> Cost:
    """One trial to its end; an epoch of the driver's own time is what it costs here."""
    begun = time.perf_counter()
    trial = search.next_trial()
    asked = time.perf_counter()
    assert trial is not None
    curve = np.random.default_rng(trial.number)
    epoch, spent, decision = 0, [], Decision.CONTINUE
    while decision is Decision.CONTINUE:
        epoch += 1
        metrics = {**dict.fromkeys(METRICS, 0.5), METRIC: float(curve.random() + epoch)}
        at = time.perf_counter()
        decision = search.epoch_done(trial.number, epoch, metrics, "best.ckpt")
        spent.append(time.perf_counter() - at)
    # The last epoch's report also closes the trial.
    plain_epoch = statistics.median(spent[:-1]) if len(spent) > 1 else 0.0
    return milliseconds(
        ask=asked - begun, epoch=plain_epoch, tell=spent[-1], whole=time.perf_counter() - begun
    )


def plain(space: Space, path: Path, count: int) -> Iterator[Cost]:
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{path}", sampler=make_sampler(space, 0))
    for _ in range(count):
        begun = time.perf_counter()
        trial = study.ask()
        suggest(space, trial)
        asked = time.perf_counter()
        trial.report(0.5, step=1)
        reported = time.perf_counter()
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        ended = time.perf_counter()
        yield milliseconds(
            ask=asked - begun, epoch=reported - asked, tell=ended - reported, whole=ended - begun
        )


def milliseconds(**seconds: float) -> Cost:
    return Cost(**{name: 1e3 * value for name, value in seconds.items()})


def row(size: int, whose: str, costs: list[Cost]) -> None:
    def words(of: Callable[[Cost], float]) -> str:
        low, middle, high = statistics.quantiles([v for v in map(of, costs) if v] or [0.0, 0.0], n=4)
        return f"{middle:.1f} ({low:.1f} to {high:.1f})"

    cells = [
        words(lambda c: c.ask),
        words(lambda c: c.epoch),
        words(lambda c: c.tell),
        words(lambda c: c.whole),
    ]
    print(f"| {size} | {whose} | {' | '.join(cells)} |", flush=True)


def rss() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    main()
