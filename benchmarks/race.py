"""Twelve trials on the digits: this package's command against the plain Ray Tune script, whole commands.

The plain script (plain_script.py) is given the configurations that this package's search has drawn, the
epochs after which it has stopped each, and the same network; what it does with them is what one writes today.
Both commands are timed from start to end, with imports, Ray's start, MLflow and the report, in turn.

    python benchmarks/race.py [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from overhead.side import own_folder
from table import Row, hardware, print_rows, spread

#: Our time divided by the plain script's.
TARGET = 0.4

TRIALS = 12
_PLAIN = Path(__file__).with_name("plain_script.py")


def main() -> None:
    """Run both, in turn, and print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(hardware("cpu", "torch", "ray", "optuna", "mlflow"))
    print_rows([row(options.rounds)])


def row(rounds: int) -> Row:
    """The table's row."""
    ours, theirs, words = [], [], ""
    for _ in range(rounds):
        with own_folder() as folder:
            ours.append(_timed(_our_command(folder), folder)[0])
            trials = _trials(folder)
        with own_folder() as folder:
            configurations = folder / "configurations.json"
            configurations.write_text(json.dumps([_configuration(trial) for trial in trials]))
            seconds, output = _timed([sys.executable, str(_PLAIN), str(configurations), str(folder)], folder)
            theirs.append(seconds)
            plain = json.loads(output.splitlines()[-1])
            assert not plain["errors"]
        epochs = sum(len(trial.intermediate_values) for trial in trials)
        words = f"{epochs} and {plain['epochs']} epochs"
        print(
            f"ours {ours[-1]:.1f} s, plain {theirs[-1]:.1f} s, {words}; {plain}", file=sys.stderr, flush=True
        )
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return Row(
        what=f"{TRIALS} digits trials, the whole command, against the plain Ray Tune script",
        measured=f"{spread(ratios)} x ({spread(ours, 0)} s against {spread(theirs, 0)} s; {words}),"
        f" n = {rounds}",
        target=f"<= {TARGET:g} x",
        met=statistics.median(ratios) <= TARGET,
    )


def _our_command(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "tune_rescon.search", "--space", "digits", "--name", "s", "--plain"]
    return [*command, "--trials", str(TRIALS), "--storage", str(folder / "runs")]


def _timed(command: Sequence[str], folder: Path) -> tuple[float, str]:
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "TUNE_RESCON_CACHE": str(folder / "cache")}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - began, done.stdout


def _trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{folder / 'runs' / 's' / 'study.db'}")
    trials = study.get_trials(deepcopy=False)
    assert len(trials) == TRIALS
    return trials


def _configuration(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    # Where ours has none (the shallow network), the plain space has one all the same: no drop.
    return {"drop_path": 0.0, **trial.params, "epochs": len(trial.intermediate_values)}


if __name__ == "__main__":
    main()
