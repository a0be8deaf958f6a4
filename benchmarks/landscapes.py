"""Search quality in the simulator: what a search finds, and after how many epochs.

Each seed is one search of the space ``att92`` on eight simulated workers, on landscapes of learning curves
whose best value is known (:mod:`tune_rescon.testing`). Rivals of one seed see the same curves. Without a
question it compares whole searches; each of the others settled something the product does in one way::

    python benchmarks/landscapes.py --seeds 20 --trials 128
    python benchmarks/landscapes.py --question diverged
    python benchmarks/landscapes.py --question clock --trainings 10

With ``--question clock`` all searches end after the same simulated seconds, and the quality is that of the
best epoch in hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import optuna
from contest.outcome import Outcome, run, run_for
from contest.questions import ON_THE_CLOCK, PLAIN, QUESTIONS, search_on_the_clock
from contest.table import table
from table import hardware

from tune_rescon.spaces import Space, load_space, preview
from tune_rescon.testing import LANDSCAPES, Landscape

#: The question of searches that end after the same seconds.
CLOCK = "clock"

#: Random draws whose mean duration of an epoch prices a full training.
DRAWN = 2000


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
    seconds: float
    """The simulated seconds of a search on the clock."""

    def run(self) -> Outcome:
        """Search; in a process of its own kind, so the libraries are silenced here."""
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        # Plain Ray's percentile over a rung of nothing but nan, Optuna's word on multivariate TPE, and
        # OptunaSearch's on each nan it tells.
        warnings.simplefilter("ignore")
        logging.getLogger("ray").setLevel(logging.ERROR)
        landscape = dataclasses.replace(LANDSCAPES[self.landscape], seed=self.seed)
        space = space_of(trials=self.trials, seed=self.seed)
        if self.question == CLOCK:
            return run_for(
                self.seconds,
                lambda clock: search_on_the_clock(
                    space, self.rival, clock, seconds=self.seconds, workers=self.workers
                ),
                space,
                landscape,
                self.best_known,
                workers=self.workers,
            )
        with QUESTIONS[self.question][self.rival].search(space) as policy:
            return run(policy, space, landscape, self.best_known, workers=self.workers)


def space_of(*, trials: int, seed: int) -> Space:
    """``att92`` with asha, without its initial row, which is near the best of every landscape."""
    settings = ["initial=[]", "scheduler={type: asha}", f"budget.trials={trials}", f"sampler.seed={seed}"]
    return load_space("att92", settings)


def rivals(question: str) -> tuple[str, ...]:
    return tuple(ON_THE_CLOCK if question == CLOCK else QUESTIONS[question])


def seconds_of(space: Space, landscape: Landscape, *, trainings: float, workers: int) -> float:
    """Return the wall time of a number of full trainings at the mean duration of an epoch."""
    drawn = preview(space, DRAWN)
    mean = sum(landscape.curve(n, p).epoch_seconds for n, p in enumerate(drawn)) / DRAWN
    return trainings * space.fidelity.max * mean / workers


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    space = space_of(trials=arguments.trials, seed=0)
    random = space.model_copy(update={"sampler": space.sampler.model_copy(update={"type": "random"})})
    for landscape in arguments.landscapes:
        best_known = LANDSCAPES[landscape].best_known(space)
        seconds = seconds_of(
            random, LANDSCAPES[landscape], trainings=arguments.trainings, workers=arguments.workers
        )
        for seed in range(arguments.seeds):
            for rival in rivals(arguments.question):
                yield Job(
                    question=arguments.question,
                    rival=rival,
                    landscape=landscape,
                    best_known=best_known,
                    trials=arguments.trials,
                    workers=arguments.workers,
                    seed=seed,
                    seconds=seconds,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", choices=[CLOCK, *sorted(QUESTIONS)], default="rivals")
    parser.add_argument("--landscapes", nargs="+", choices=sorted(LANDSCAPES), default=list(LANDSCAPES))
    parser.add_argument("--seeds", type=int, default=20, help="searches of each rival on each landscape")
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--trainings", type=float, default=10, help=f"the budget of --question {CLOCK}")
    parser.add_argument("--workers", type=int, default=8, help="simulated ones")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    began, planned = time.monotonic(), list(jobs(arguments))
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = dict(zip(planned, pool.map(Job.run, planned, chunksize=2), strict=True))
    limit = (
        f"{arguments.trainings:g} trainings" if arguments.question == CLOCK else f"{arguments.trials} trials"
    )
    print(f"{arguments.question}: {arguments.seeds} seeds, {limit} each; ± is standard error")
    for landscape in arguments.landscapes:
        of = {name: _of(outcomes, landscape, name) for name in rivals(arguments.question)}
        if PLAIN in of:
            of[f"{PLAIN}, its own pick"] = [
                dataclasses.replace(o, quality=o.quality_of_last) for o in of[PLAIN]
            ]
        print(f"\n{table(landscape, of)}")
    print(f"\n{hardware('cpu', 'optuna', 'ray', 'numpy')}; {time.monotonic() - began:.0f} s")


def _of(outcomes: dict[Job, Outcome], landscape: str, rival: str) -> list[Outcome]:
    return [o for job, o in outcomes.items() if (job.landscape, job.rival) == (landscape, rival)]


if __name__ == "__main__":
    main()
