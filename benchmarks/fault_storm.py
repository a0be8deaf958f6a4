"""A fault storm: drivers and trial processes are SIGKILLed at random, here and in plain Ray Tune.

Each search has cheap trials (a formula for a curve, 0.1 s an epoch, a real checkpoint file) in real Ray, with
real Optuna and MLflow on SQLite. Its driver is killed three times at seeded moments, anywhere from start-up
to end, and so are trial processes; it is started again at once, and the last one ends by itself. Then all is
counted. Plain Ray Tune (``Tuner.restore``, OptunaSearch, ASHAScheduler, MLflowLoggerCallback) gets the same
curve and the same plan; its moments are shares of what a side's undisturbed search needs, measured first::

    python benchmarks/fault_storm.py --searches 30 --trials 20 --kills 3
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storm.check_ours import check_ours
from storm.check_plain import check_plain
from storm.findings import Fault, Findings
from storm.lives import Life, Lives
from storm.outcome import Outcome, read_outcomes
from storm.plan import Pace, Plan, draw_plan
from storm.table import table

#: Seed of the plan without kills that measures the pace.
CALM = -1

#: MLflow and Optuna are asked by one thread at a time: their caches of database engines are made for that.
_CHECKING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared."""

    name: str
    module: str
    check: Callable[[Path, int], Findings]
    needs_cache: bool
    not_measured: frozenset[Fault] = frozenset()
    """What its check does not look at."""

    @property
    def key(self) -> str:
        """The word for it in a path or an option."""
        return self.module.rpartition(".")[2]

    def command(self, storage: Path, cache: Path, trials: int, seed: int) -> list[str]:
        """Starts a driver; the first begins the search, the others resume it."""
        given = {"--storage": storage, "--trials": trials, "--seed": seed}
        if self.needs_cache:
            given["--cache"] = cache
        return [sys.executable, "-m", self.module, *(str(part) for pair in given.items() for part in pair)]


SIDES = (
    Side(
        name="tune_rescon",
        module="storm.ours",
        check=check_ours,
        needs_cache=True,
        # It has no snapshot to lose them from: a driver fills its rungs from the study whenever it starts.
        not_measured=frozenset({Fault.RUNGS_EMPTY}),
    ),
    Side(
        name="plain Ray Tune",
        module="storm.plain",
        check=check_plain,
        needs_cache=False,
        # It promises nothing about either.
        not_measured=frozenset({Fault.CHECKPOINTS, Fault.STUCK}),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Storm:
    """What all searches of one run share."""

    work: Path
    ray: Path
    trials: int
    at_once: int
    keep: bool
    aftermath: ThreadPoolExecutor
    """Waits for each search's orphans, and checks it, while the next searches run."""

    @property
    def notes(self) -> Path:
        """Where each search's outcome is written down."""
        return self.work / "outcomes.jsonl"

    def search(self, side: Side, plan: Plan, pace: Pace) -> Future[Outcome]:
        """Take one search of one side through its plan; what is left of it, a while later."""
        name = f"{side.key}-{'calm' if plan.seed == CALM else plan.seed}"
        folder = self.work / name
        storage = folder / "runs"
        # A storm that was itself cut short left half a search.
        shutil.rmtree(folder, ignore_errors=True)
        storage.mkdir(parents=True)
        command = side.command(storage, self.work / "cache", self.trials, max(plan.seed, 0))
        lives = Lives(command, folder, self.ray / name)
        lived = lives.weather(plan, pace)
        return self.aftermath.submit(self._conclude, side, plan, folder, lives, lived)

    def _conclude(self, side: Side, plan: Plan, folder: Path, lives: Lives, lived: list[Life]) -> Outcome:
        orphans = lives.orphans()
        findings = _check(side, folder / "runs", self.trials)
        findings.add(Fault.ORPHANS, str(orphans), len(orphans))
        _check_exits(lived, findings)
        epochs = lives.trained()
        outcome = Outcome(
            side=side.name,
            seed=plan.seed,
            lives=lived,
            findings=findings,
            trained=len(epochs),
            needed=len(set(epochs)),
        )
        self._note(outcome, folder)
        return outcome

    def _note(self, outcome: Outcome, folder: Path) -> None:
        """Say what was found, and keep a search's files where there is something to look into."""
        counts = outcome.findings.counts
        said = ", ".join(f"{count} {fault}" for fault, count in counts.items()) or "clean"
        print(f"{outcome.side}, seed {outcome.seed}: {outcome.seconds:.0f} s, {said}", flush=True)
        with self.notes.open("a") as file:
            file.write(outcome.to_json() + "\n")
        if not counts and not self.keep:
            shutil.rmtree(folder)


def _check_exits(lived: Sequence[Life], findings: Findings) -> None:
    last = lived[-1].exit_code
    findings.expect(last == 0, Fault.NOT_FINISHED, f"the last driver ended with {last}")
    for number, life in enumerate(lived):
        findings.expect(life.exit_code != 2, Fault.STUCK, f"life {number}")
        well = life.exit_code in (None, 0, 2) or number == len(lived) - 1
        findings.expect(well, Fault.OTHER, f"life {number} ended with {life.exit_code}")


def _check(side: Side, storage: Path, trials: int) -> Findings:
    try:
        with _CHECKING:
            return side.check(storage, trials)
    except Exception:
        findings = Findings()
        findings.add(Fault.OTHER, f"cannot be checked: {traceback.format_exc()}")
        return findings


def _pace(outcome: Outcome) -> Pace:
    life = outcome.lives[0]
    if life.exit_code != 0 or life.first_epoch is None:
        raise SystemExit(f"{outcome.side}: the search without faults failed: {outcome.findings.notes}")
    return Pace(startup=life.first_epoch, epochs=outcome.needed)


def run(storm: Storm, sides: Sequence[Side], plans: Sequence[Plan]) -> None:
    """Measure the pace of each side, beside the other's, then let the storms loose.

    What an earlier run in the same directory has done is not done again.
    """
    known = read_outcomes(storm.notes)
    calm, unknown = Plan(seed=CALM, driver_kills=(), worker_kills=((),)), Pace(startup=1, epochs=1)
    with ThreadPoolExecutor(storm.at_once) as pool:
        untimed = [side for side in sides if (side.name, CALM) not in known]
        for future in list(pool.map(lambda side: storm.search(side, calm, unknown), untimed)):
            future.result()
        timed = read_outcomes(storm.notes)
        paces = {side: _pace(timed[side.name, CALM]) for side in sides}
        jobs = [(side, plan) for plan in plans for side in sides if (side.name, plan.seed) not in known]
        for future in list(pool.map(lambda job: storm.search(job[0], job[1], paces[job[0]]), jobs)):
            future.result()


def report(outcomes: Mapping[tuple[str, int], Outcome], sides: Sequence[Side]) -> str:
    """All that was found, in every run in this directory."""
    calm = [outcomes[side.name, CALM] for side in sides]
    stormy = [outcome for (_, seed), outcome in sorted(outcomes.items()) if seed != CALM]
    columns = {side.name: [outcome for outcome in stormy if outcome.side == side.name] for side in sides}
    unknown = {side.name: side.not_measured for side in sides}
    return "\n".join(["Without faults:", *map(_calm_line, calm), "", table(columns, unknown)])


def _calm_line(outcome: Outcome) -> str:
    pace, count = _pace(outcome), sum(outcome.findings.counts.values())
    return (
        f"- {outcome.side}: {pace.startup:.1f} s to the first epoch, {outcome.seconds:.1f} s in all,"
        f" {pace.epochs} epochs; {count} findings"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=30)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--kills", type=int, default=3, help="of the driver, a search")
    parser.add_argument("--worker-kills", type=int, default=3, help="of trial processes, a search")
    parser.add_argument("--seed", type=int, default=0, help="of the first search's plan")
    parser.add_argument("--at-once", type=int, default=2, help="searches at a time")
    parser.add_argument("--only", choices=("ours", "plain"))
    parser.add_argument("--work", type=Path, help="a directory, new or to continue in [default: new]")
    parser.add_argument("--keep", action="store_true", help="the files of clean searches too")
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="storm-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    sides = tuple(side for side in SIDES if arguments.only in (None, side.key))
    began = time.monotonic()
    plans = [
        draw_plan(arguments.seed + number, kills=arguments.kills, worker_kills=arguments.worker_kills)
        for number in range(arguments.searches)
    ]
    # Ray's sockets need a short path, whatever --work is.
    short = tempfile.TemporaryDirectory(prefix="fs", dir="/tmp", ignore_cleanup_errors=True)
    with short as ray, ThreadPoolExecutor(len(SIDES) * (1 + len(plans))) as aftermath:
        storm = Storm(
            work=work,
            ray=Path(ray),
            trials=arguments.trials,
            at_once=arguments.at_once,
            keep=arguments.keep,
            aftermath=aftermath,
        )
        run(storm, sides, plans)
    print(f"\n{report(read_outcomes(storm.notes), sides)}\n")
    print(f"{time.monotonic() - began:.0f} s on {os.cpu_count()} cores; what was found: {storm.notes}")


if __name__ == "__main__":
    main()
