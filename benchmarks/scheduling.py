"""What scheduling costs: many trials that train nothing, by this package with all of it on and by plain Tune.

Both sides draw by Optuna's TPE and judge by ASHA, whose only rung is the last epoch, so that both do the same
work. The figure is the time from the first trial's start to the last one's end.

    python benchmarks/scheduling.py                  # 1,000 trials of 5 epochs, two at once
    python benchmarks/scheduling.py --bookkeeping    # Ray's own workload: 10,000 trials of 1 s, 16 at once
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

from overhead.load import Figures, Load
from overhead.side import Side, own_folder, run_side
from table import Row, hardware, print_rows, spread

#: The targets: against plain Tune without and with its MLflow callback, and seconds in all.
WITHOUT_TARGET = 1.3
WITH_TARGET = 0.4
BOOKKEEPING_TARGET = 800.0


def main() -> None:
    """Run what the command line asks for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--bookkeeping", action="store_true")
    options = parser.parse_args()
    print(hardware("cpu", "ray", "optuna", "mlflow"))
    if options.bookkeeping:
        print_rows([bookkeeping(10 * options.trials)])
    else:
        print_rows(noop_rows(options.trials, options.rounds))


def noop_rows(trials: int, rounds: int) -> list[Row]:
    """Trials of 5 epochs that train nothing, in turn by each side."""
    kinds: Mapping[str, tuple[Side, str | None]] = {
        "ours, all on": ("ours", None),
        "plain": ("plain", "none"),
        "plain with its MLflow callback": ("plain", None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (side, tracking) in kinds.items():
            load = Load(trials=trials, epochs=5, judged=True, tracking=tracking)
            seconds[name].append(_run(side, load, name).seconds)
    return [
        _ratio(
            f"{trials:,} no-op trials x 5 epochs, against {name}",
            seconds["ours, all on"],
            seconds[name],
            limit,
        )
        for name, limit in (("plain", WITHOUT_TARGET), ("plain with its MLflow callback", WITH_TARGET))
    ]


def bookkeeping(trials: int) -> Row:
    """Trials of one second on 16 processors that Ray believes in (perfect: trials / 16 seconds)."""
    load = Load(trials=trials, epochs=1, slots=16, cpus=16, pace=1.0, judged=True)
    figures = _run("ours", load, "bookkeeping")
    limit = BOOKKEEPING_TARGET * trials / 10_000
    return Row(
        what=f"{trials:,} trials of 1 s on 16 logical CPUs (perfect: {trials / 16:.0f} s), all on",
        measured=f"{figures.seconds:.0f} s, {figures.processes} processes begun; "
        f"MLflow had all {figures.lag:.1f} s later; n = 1",
        target=f"<= {limit:.0f} s",
        met=figures.seconds <= limit,
    )


def _ratio(what: str, ours: Sequence[float], theirs: Sequence[float], limit: float) -> Row:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Row(
        what=what,
        measured=f"{spread(ratios)} x ({spread(ours, 1)} s against {spread(theirs, 1)}), n = {len(ratios)}",
        target=f"<= {limit:g} x",
        met=statistics.median(ratios) <= limit,
    )


def _run(side: Side, load: Load, name: str) -> Figures:
    with own_folder() as folder:
        figures = run_side(side, load, folder)
    print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    main()
