"""What the report's page costs: seconds to write it, its size, and how soon a browser can be used on it.

The study is simulated: every trial of the space ``att92``, with random parameters, runs to the last epoch on
64 workers, so that each of its 27 epochs is drawn. Each run writes the page again and opens it in a headless
Chromium, if there is one. *Interactive* is when the text is there and the plots in sight are drawn and
answer; *complete* is when all are. Both count from the navigation's start. Prints a markdown table::

    python benchmarks/report_page.py --trials 1000 --epochs 27 --runs 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from browser import Browser, browser, find_browser
from table import hardware

from tune_rescon.reporting import write_report
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation
from tune_rescon.tuning import StudyResult

WORKERS = 64


@dataclass(frozen=True, kw_only=True)
class Run:
    """One page: seconds, and its size in million bytes."""

    written: float
    size: float
    interactive: float | None = None
    complete: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=27)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a file to leave the last page in")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    result = study(options.trials, options.epochs)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        if find_browser() is None:
            print("no Chromium here: nothing is opened\n")
            runs = [write(result, page) for _ in range(options.runs)]
        else:
            runs = opened(result, page, options.runs)
        if options.keep is not None:
            options.keep.write_bytes(page.read_bytes())
    epochs = sum(trial.epochs for trial in result.trials)
    print(f"{len(result.trials)} trials, {epochs} epochs; medians (extremes) of {options.runs} runs\n")
    print(table(runs))
    print(f"\n{hardware('cpu', 'plotly')}")


def study(trials: int, epochs: int) -> StudyResult:
    settings = (f"budget.trials={trials}", f"fidelity.max={epochs}", "scheduler.type=none")
    space = load_space("att92", ["initial=[]", "sampler.type=random", *settings])
    landscape = LANDSCAPES["overfitting"]
    simulation = Simulation(lambda t: landscape.curve(t.number, t.parameters), workers=WORKERS)
    search = SimulatedSearch(space, clock=simulation.clock)
    simulation.drive(search.policy())
    return search.result(Path("runs") / space.name)


def opened(result: StudyResult, page: Path, count: int) -> list[Run]:
    with browser() as chromium:
        # A browser's first page pays for its start.
        seen(chromium, write(result, page), page)
        return [seen(chromium, write(result, page), page) for _ in range(count)]


def write(result: StudyResult, page: Path) -> Run:
    begun = time.perf_counter()
    write_report(result, page)
    return Run(written=time.perf_counter() - begun, size=page.stat().st_size / 1e6)


def seen(chromium: Browser, run: Run, path: Path) -> Run:
    page = chromium.open(path.as_uri())
    page.wait_for("document.documentElement?.dataset.complete === 'yes'")
    marks = page.evaluate("performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])")
    complaints = page.complaints()
    page.close()
    assert not complaints, complaints
    at = {name: milliseconds / 1000 for name, milliseconds in marks}
    return Run(written=run.written, size=run.size, interactive=at["interactive"], complete=at["complete"])


def table(runs: Sequence[Run]) -> str:
    columns = {
        "written, s": [run.written for run in runs],
        "size, MB": [run.size for run in runs],
        "interactive, s": [run.interactive for run in runs if run.interactive is not None],
        "complete, s": [run.complete for run in runs if run.complete is not None],
    }
    known = {name: values for name, values in columns.items() if values}
    cells = (f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in known.values())
    return f"| {' | '.join(known)} |\n|{'---|' * len(known)}\n| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
