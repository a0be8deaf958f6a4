"""A driver of plain Ray Tune, put together as its documentation does it, by the ways that lose least.

``Tuner.can_restore`` decides between ``Tuner.restore(resume_errored=True)`` and a new ``Tuner``, as its
docstring says. ``num_to_keep`` has Tune snapshot its state at every second checkpoint, not every ten seconds.
OptunaSearch is given its space itself: if it gets the space from ``param_space``, it cannot continue before a
snapshot was written. Its study is in memory, as in the tutorials: one in a database is ahead of the snapshot
that is restored, and the first report to a trial it holds as ended raises UpdateFinishedTrialError.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from storm.trainables import EPOCHS, train_plain

__all__ = ["NAME", "RUNGS", "main"]

NAME = "storm"
RUNGS = (1, 3)

SLOTS = 2

_SPACE = {
    "depth": CategoricalDistribution((56, 92)),
    "learning_rate": FloatDistribution(3e-2, 3e-1, log=True),
    "weight_decay": FloatDistribution(1e-5, 1e-3, log=True),
    "label_smoothing": FloatDistribution(0.0, 0.1),
    "drop_path": FloatDistribution(0.0, 0.1),
}


def main() -> int:
    """Begin or restore the experiment, run it to its end, and write down what it holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    experiment = arguments.storage / NAME
    if tune.Tuner.can_restore(str(experiment)):
        tuner = tune.Tuner.restore(str(experiment), _trainable(), resume_errored=True)
        _note_rungs(tuner, arguments.storage)
    else:
        tuner = _new(arguments.storage, arguments.trials, arguments.seed)
    results = tuner.fit()
    seen = {"trials": [_row(result) for result in results], "study": _study(tuner)}
    (arguments.storage / "results.json").write_text(json.dumps(seen))
    return 0


def _trainable() -> Any:
    return tune.with_resources(train_plain, {"cpu": 1})


def _new(storage: Path, trials: int, seed: int) -> tune.Tuner:
    return tune.Tuner(
        _trainable(),
        tune_config=tune.TuneConfig(
            num_samples=trials,
            max_concurrent_trials=SLOTS,
            reuse_actors=True,
            search_alg=OptunaSearch(
                _SPACE,
                metric="val_accuracy",
                mode="max",
                seed=seed,
            ),
            scheduler=ASHAScheduler(
                metric="val_accuracy", mode="max", max_t=EPOCHS, grace_period=RUNGS[0], reduction_factor=3
            ),
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(storage),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{storage / 'mlflow.db'}", experiment_name=NAME)],
            failure_config=tune.FailureConfig(max_failures=3),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        ),
    )


def _note_rungs(tuner: tune.Tuner, storage: Path) -> None:
    """Write down how many values the restored scheduler's rungs hold, and how many were reported there.

    Ray has no public way to ask for either; these are the attributes its own tests look at.
    """
    scheduler = tuner._local_tuner._tune_config.scheduler
    rungs = [rung for bracket in scheduler._brackets for rung in bracket._rungs]
    held = sum(len(recorded) for milestone, recorded in rungs if milestone in RUNGS)
    reported = 0
    for file in (storage / NAME).glob("*/result.json"):
        epochs = {json.loads(line)["training_iteration"] for line in _whole_lines(file)}
        reported += len(epochs.intersection(RUNGS))
    with (storage / "rungs.jsonl").open("a") as notes:
        notes.write(json.dumps({"held": held, "reported": reported}) + "\n")


def _whole_lines(file: Path) -> list[str]:
    # A kill may have left half a line at the end.
    return [line for line in file.read_text().splitlines() if line.endswith("}")]


def _row(result: tune.Result) -> dict[str, Any]:
    frame = result.metrics_dataframe
    return {
        "trial": (result.metrics or {}).get("trial_id"),
        "epochs": [] if frame is None else [int(epoch) for epoch in frame["training_iteration"]],
        "values": [] if frame is None else [float(value) for value in frame["val_accuracy"]],
        "learning_rate": result.config["learning_rate"],
        "error": None if result.error is None else repr(result.error)[:200],
        "folder": Path(result.path).name,
    }


def _study(tuner: tune.Tuner) -> list[dict[str, Any]]:
    study = tuner._local_tuner._tune_config.search_alg._ot_study
    return [
        {"number": t.number, "state": t.state.name, "epochs": sorted(t.intermediate_values)}
        for t in study.trials
    ]


if __name__ == "__main__":
    sys.exit(main())
