"""Search quality on recorded learning curves: the regret of a search within a budget.

Each contestant searches a table of recorded curves on simulated workers. All have the same budget: seconds
of the workers (``--budget clock``), or epochs (``--budget epochs``). The regret is the best value of the
table minus the best value seen, times 100, after 25, 50 and 100 % of the budget. Searches of one seed are
pairs::

    python benchmarks/quality.py --table benchmarks/curves/tinyimagenet_resnet.csv.gz
    python benchmarks/quality.py --table FILE.csv.gz --seeds 20 --budget epochs --json regret.json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
from contest.contestant import Contest
from contest.peers import CONTESTANTS
from contest.recorded import RecordedCurve, Table, load_table
from table import estimate, estimate_text

from tune_rescon.errors import StorageError
from tune_rescon.paths import check_output_file
from tune_rescon.spaces import Space
from tune_rescon.testing import Assignment, Simulation
from tune_rescon.tuning import sampler
from tune_rescon.tuning.trial import TrialOrigin

SHARES = (0.25, 0.5, 1.0)
BUDGETS = ("clock", "epochs")
#: The regret at each of :data:`SHARES`, by budget.
Regrets = dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One search of one contestant."""

    path: Path
    contestant: str
    budgets: tuple[str, ...]
    """One budget for a contestant that plans for it. Others run once, until all of these are spent."""
    seed: int
    trainings: float
    most: int
    workers: int

    def run(self) -> Regrets:
        """Return the regret at each share of each budget."""
        table = load_table(self.path)
        epochs, seconds = limits(table, self.trainings, self.most, self.workers)
        rows: dict[int, int] = {}

        def workload(trial: Assignment) -> RecordedCurve:
            if trial.number not in rows:
                rows[trial.number] = table.nearest(trial.parameters, set(rows.values()))
            return table.curve(rows[trial.number])

        def until(next_event: float, reported: int) -> bool:
            spent = {"clock": next_event > seconds, "epochs": reported >= epochs}
            return all(spent[budget] for budget in self.budgets)

        simulation = Simulation(workload, workers=self.workers)
        contest = Contest(
            table=table,
            seed=self.seed,
            workers=self.workers,
            clock=simulation.clock,
            epochs=epochs if self.budgets == ("epochs",) else None,
            seconds=seconds if self.budgets == ("clock",) else None,
        )
        # The hyperparameters of a table are not those of a network of this package.
        with patch.object(sampler, "make_origin", recorded_origin), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            simulation.drive(CONTESTANTS[self.contestant].make(contest), until=until)
        runs = [run for run in simulation.trace.runs if run.decision is not None]
        spent = {
            "clock": [(run.ended / seconds, run.value) for run in runs],
            "epochs": [(index / epochs, run.value) for index, run in enumerate(runs, 1)],
        }
        return {
            budget: tuple(100 * (table.best - _best(spent[budget], share)) for share in SHARES)
            for budget in self.budgets
        }


def silence() -> None:
    """Keep the libraries quiet in a process that only searches."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("syne_tune").setLevel(logging.CRITICAL)


def recorded_origin(
    space: Space, parameters: Mapping[str, Any], *, version: int, number: int, enqueued: bool = False
) -> TrialOrigin:
    """Return the origin of a trial whose parameters are columns of a table."""
    del space, enqueued
    return TrialOrigin(config=dict(parameters), space=version, seed=number)


def limits(table: Table, trainings: float, most: int, workers: int) -> tuple[int, float]:
    """Return the budget in epochs, and the same in seconds of wall time at the mean duration of an epoch.

    ``trainings`` is the budget in full trainings, and ``most`` the largest budget in epochs for ten of them.
    """
    epochs = min(round(trainings * table.last), round(most * trainings / 10))
    return epochs, epochs * float(table.seconds.mean()) / workers


def _best(used: Sequence[tuple[float, float]], share: float) -> float:
    """Return the best value within a share of the budget; -1 without a value."""
    return max((v for spent, v in used if spent <= share + 1e-9 and math.isfinite(v)), default=-1.0)


def report(regrets: Mapping[str, Sequence[tuple[float, ...]]]) -> str:
    """Return a Markdown table; the differences are paired with the first contestant."""
    lines = [
        "| contestant | n | 25 % | 50 % | 100 % | the first minus it, 50 % | the first minus it, 100 % |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(regrets.values()))
    for name, values in regrets.items():
        cells = [estimate_text([v[i] for v in values]) for i in range(len(SHARES))]
        pairs = list(zip(first, values, strict=False))
        against = [estimate_text([a[i] - b[i] for a, b in pairs], signed=True) for i in (1, 2)]
        against = ["", ""] if values is first else against
        lines.append(f"| {name} | {len(values)} | {' | '.join([*cells, *against])} |")
    return "\n".join(lines)


def as_json(
    regrets: Mapping[str, Sequence[tuple[float, ...]]], *, table: str, budget: str
) -> list[dict[str, object]]:
    """Return one object for each contestant."""
    return [
        {
            "name": name,
            "table": table,
            "budget": budget,
            "n": len(values),
            "regret": {
                str(share): dict(zip(("mean", "se"), estimate([v[i] for v in values]), strict=True))
                for i, share in enumerate(SHARES)
            },
            "seeds": [list(value) for value in values],
        }
        for name, values in regrets.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="a .csv.gz of recorded curves")
    parser.add_argument("--seeds", type=int, default=20, help="searches of each contestant")
    parser.add_argument("--trainings", type=float, default=10, help="the budget, in full trainings")
    parser.add_argument(
        "--most",
        type=int,
        default=1120,
        help="largest budget in epochs, for 10 trainings; else in proportion",
    )
    parser.add_argument("--workers", type=int, default=8, help="simulated workers")
    parser.add_argument("--budget", choices=[*BUDGETS, "both"], default="clock")
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), help="default: all")
    parser.add_argument("--json", type=Path, help="write the regrets to this file, too")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if not arguments.table.is_file():
        parser.error(f"--table {arguments.table}: there is no such file")
    try:
        table = load_table(arguments.table)
    except (ValueError, OSError) as error:
        parser.error(f"--table {arguments.table}: {error}")
    if arguments.json is not None:
        try:
            check_output_file(arguments.json, where="--json")
        except StorageError as error:
            parser.error(str(error))
    names = arguments.contestants or [name for name, entry in CONTESTANTS.items() if entry.is_there]
    for name in names:
        needed = CONTESTANTS[name].needs
        if needed is not None and not needed.is_there:
            parser.error(f'--contestants "{name}" {needed.missing}')
    budgets = BUDGETS if arguments.budget == "both" else (arguments.budget,)
    began = time.monotonic()
    jobs = [
        Job(
            path=arguments.table,
            contestant=name,
            budgets=told,
            seed=seed,
            trainings=arguments.trainings,
            most=arguments.most,
            workers=arguments.workers,
        )
        for seed in range(arguments.seeds)
        for name in names
        for told in ([(budget,) for budget in budgets] if CONTESTANTS[name].plans else [budgets])
    ]
    with ProcessPoolExecutor(arguments.processes, initializer=silence) as pool:
        outcomes = list(zip(jobs, pool.map(Job.run, jobs), strict=True))
    epochs, seconds = limits(table, arguments.trainings, arguments.most, arguments.workers)
    found = []
    for budget in budgets:
        limit = f"{epochs} epochs" if budget == "epochs" else f"{seconds:.0f} s on the clock"
        regrets = {
            name: [r[budget] for job, r in outcomes if job.contestant == name and budget in r]
            for name in names
        }
        print(
            f"{table.name}: regret of {arguments.seeds} searches within {limit}, {arguments.workers} workers"
        )
        print(f"\n{report(regrets)}\n")
        found += as_json(regrets, table=table.name, budget=budget)
    print(f"± is the standard error; {time.monotonic() - began:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
