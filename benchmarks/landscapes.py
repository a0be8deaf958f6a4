"""Search quality in the simulator: what a search finds, and after how many epochs.

Each seed is one search of the space ``att92`` on eight simulated workers, on landscapes of learning curves
whose best value is known (:mod:`tune_rescon.testing`). Rivals of one seed see the same curves. Without a
question it compares whole searches; each of the others settled something the product does in one way::

    python benchmarks/quality.py --seeds 20 --trials 128
    python benchmarks/quality.py --question diverged
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import optuna
from contest.outcome import Outcome, run
from contest.questions import PLAIN, QUESTIONS
from contest.table import table

from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import LANDSCAPES


@dataclass(frozen=True, kw_only=True)
class Job:
    """One search."""

    question: str
    rival: str
    landscape: str
    best_known: float
    trials: int
    workers: int
    seed: int

    def run(self) -> Outcome:
        """Search; in a process of its own kind, so the libraries are silenced here."""
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        # Plain Ray's percentile over a rung of nothing but nan, Optuna's word on multivariate TPE, and
        # OptunaSearch's on each nan it tells.
        warnings.simplefilter("ignore")
        logging.getLogger("ray").setLevel(logging.ERROR)
        landscape = dataclasses.replace(LANDSCAPES[self.landscape], seed=self.seed)
        space = space_of(trials=self.trials, seed=self.seed)
        with QUESTIONS[self.question][self.rival].search(space) as policy:
            return run(policy, space, landscape, self.best_known, workers=self.workers)


def space_of(*, trials: int, seed: int) -> Space:
    """``att92`` with asha, without its initial row, which is near the best of every landscape."""
    settings = ["initial=[]", "scheduler={type: asha}", f"budget.trials={trials}", f"sampler.seed={seed}"]
    return load_space("att92", settings)


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    space = space_of(trials=arguments.trials, seed=0)
    for landscape in arguments.landscapes:
        best_known = LANDSCAPES[landscape].best_known(space)
        for seed in range(arguments.seeds):
            for rival in QUESTIONS[arguments.question]:
                yield Job(
                    question=arguments.question,
                    rival=rival,
                    landscape=landscape,
                    best_known=best_known,
                    trials=arguments.trials,
                    workers=arguments.workers,
                    seed=seed,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", choices=sorted(QUESTIONS), default="rivals")
    parser.add_argument("--landscapes", nargs="+", choices=sorted(LANDSCAPES), default=list(LANDSCAPES))
    parser.add_argument("--seeds", type=int, default=20, help="searches of each rival on each landscape")
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--workers", type=int, default=8, help="simulated ones")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    began, planned = time.monotonic(), list(jobs(arguments))
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = dict(zip(planned, pool.map(Job.run, planned, chunksize=2), strict=True))
    print(
        f"{arguments.question}: {arguments.seeds} seeds, {arguments.trials} trials each; ± is standard error"
    )
    for landscape in arguments.landscapes:
        of = {name: _of(outcomes, landscape, name) for name in QUESTIONS[arguments.question]}
        if PLAIN in of:
            of[f"{PLAIN}, its own pick"] = [
                dataclasses.replace(o, quality=o.quality_of_last) for o in of[PLAIN]
            ]
        print(f"\n{table(landscape, of)}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("optuna", "ray", "numpy"))
    print(f"\nPython {platform.python_version()}, {versions}; {time.monotonic() - began:.0f} s")


def _of(outcomes: dict[Job, Outcome], landscape: str, rival: str) -> list[Outcome]:
    return [o for job, o in outcomes.items() if (job.landscape, job.rival) == (landscape, rival)]


if __name__ == "__main__":
    main()
