"""What one epoch's report costs the driver, with everything on, when the study holds 1,000 trials.

Everything: the scheduler's decision, the record (SQLite), the sampler's view, MLflow's writer with its
process (SQLite), and the live table, which draws four times a second. Without Ray, whose own share is in
scheduling.py. Trials of up to 9 epochs go through one after the other; an epoch that closes its trial is not
counted among the plain ones, but said.

    python benchmarks/driver_cost.py [--trials 1000] [--window 200]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import optuna
from record_cost import METRIC, OVERRIDES, Cost, run
from rich.console import Console
from table import Row, hardware, print_rows, spread

from tune_rescon.data import describe
from tune_rescon.reporting import LiveView
from tune_rescon.spaces import load_space
from tune_rescon.tracking import Destination, SearchRunState, mlflow_writer
from tune_rescon.tuning import Coordinator, SearchPlan, SearchSampler, StudyRecord, make_stopping_rule
from tune_rescon.tuning.cost_model import CostModel
from tune_rescon.tuning.mlflow_callback import MlflowCallback

#: Milliseconds.
TARGET = 2.0


def main() -> None:
    """Fill a study, time some trials on it, and print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="in the study before anything is timed")
    parser.add_argument("--window", type=int, default=200, help="trials that are timed")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(hardware("cpu", "optuna", "mlflow"))
    with tempfile.TemporaryDirectory() as folder:
        costs = list(_costs(Path(folder), options.trials, options.window))
    print_rows([row(costs, options.trials)])


def row(costs: list[Cost], trials: int) -> Row:
    """The table's row."""
    epochs = [cost.epoch for cost in costs if cost.epoch]
    asks, tells = [cost.ask for cost in costs], [cost.tell for cost in costs]
    return Row(
        what=f"the driver's own work for an epoch's report, {trials:,} trials in the study, everything on",
        measured=f"{spread(epochs)} ms, n = {len(epochs)} trials; a new trial {spread(asks, 1)} ms,"
        f" the report that ends one {spread(tells, 1)} ms",
        target=f"<= {TARGET:g} ms",
        met=statistics.median(epochs) <= TARGET,
    )


def _costs(folder: Path, trials: int, window: int) -> Iterator[Cost]:
    space = load_space("digits", OVERRIDES)
    url = f"sqlite:///{folder / 'study.db'}"
    record = StudyRecord.create(url, "s", metric=METRIC, maximize=True, space="")
    datasets = {space.dataset.name: describe(space.dataset, data_root=folder)}
    destination = Destination(
        uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="digits", search="s", metric=METRIC, maximize=True
    )
    with ExitStack() as stack:
        writer = stack.enter_context(mlflow_writer(destination))
        writer.submit(SearchRunState(id="1a"))
        terminal = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
        view = stack.enter_context(LiveView(terminal, space, name="s"))
        search = Coordinator(
            SearchPlan(total=space.budget.trials),
            record,
            make_stopping_rule(space),
            SearchSampler(space, existing_trials=record.trials()),
            callbacks=(MlflowCallback(writer, record, CostModel(space=space, datasets=datasets)), view),
            prune=lambda *_: None,
        ).start()
        while len(record) < trials:
            run(search)
        for _ in range(window):
            yield run(search)


if __name__ == "__main__":
    main()
