"""What a search of this package must be like after a storm: the contract, read from outside.

Only Optuna, MLflow and the file system are asked, so that a fault of the package cannot hide itself.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from storm.findings import Fault, Findings, count_epochs
from storm.mlflow_store import RunSeen, read_runs
from storm.ours import NAME
from storm.trainables import EPOCHS, accuracy
from tune_rescon.metric_names import METRICS

__all__ = ["check_ours"]

#: Epochs at which ASHA may have stopped a trial of the space `digits`.
RUNGS: Final = (1, 3)

#: Trials whose checkpoint is kept.
KEPT: Final = 5

_CLOSING: Final = ("best_val_accuracy", "best_epoch", "compute_hours", "params_m", "gmacs")

_OPTUNA_STATE: Final = {"finished": OptunaState.COMPLETE, "stopped": OptunaState.PRUNED}


def check_ours(storage: Path, trials: int) -> Findings:
    """Everything wrong with a search that should have ``trials`` finished or stopped trials.

    Of a search that never began there is nothing to say here: its driver has failed.
    """
    found = Findings()
    if not (storage / NAME / "study.db").is_file():
        return found
    study = optuna.load_study(study_name=NAME, storage=f"sqlite:///{storage / NAME / 'study.db'}")
    _check_numbers(study.trials, trials, found)
    for trial in study.trials:
        _check_trial(trial, found)
    _check_rungs(study.trials, found)
    _check_runs(study, read_runs(storage / "mlflow.db", [*METRICS, *_CLOSING]), found)
    _check_checkpoints(study.trials, storage / NAME, found)
    _check_files(storage / NAME, trials, found)
    return found


def _check_numbers(trials: Sequence[FrozenTrial], wanted: int, found: Findings) -> None:
    numbers = Counter(trial.number for trial in trials)
    lost = sorted(set(range(wanted)) - set(numbers))
    found.add(Fault.TRIALS_LOST, f"numbers {lost}", len(lost))
    extra = sorted(set(numbers) - set(range(wanted)))
    found.add(Fault.TRIALS_TWICE, f"numbers {extra} are too many", len(extra))
    drawn = Counter(tuple(sorted(trial.params.items())) for trial in trials)
    again = [dict(params) for params, count in drawn.items() if count > 1]
    found.add(Fault.TRIALS_TWICE, f"the same parameters again: {again}", len(again))


def _check_trial(trial: FrozenTrial, found: Findings) -> None:
    who, epochs = f"trial {trial.number}", sorted(trial.intermediate_values)
    state = trial.user_attrs.get("state")
    if trial.state in (OptunaState.RUNNING, OptunaState.WAITING):
        found.add(Fault.RUNNING_IN_OPTUNA, f"{who} is {trial.state.name}, state {state}")
        return
    found.expect(state in _OPTUNA_STATE, Fault.TRIALS_LOST, f"{who} ended {state}")
    right = _OPTUNA_STATE.get(str(state), OptunaState.FAIL)
    found.expect(trial.state is right, Fault.WRONG_IN_OPTUNA, f"{who} is {state} and {trial.state.name}")
    last = epochs[-1] if epochs else 0
    missing, _ = count_epochs(epochs, EPOCHS if state == "finished" else last)
    found.add(Fault.EPOCHS_MISSING, f"{who} has epochs {epochs} and is {state}", missing)
    if state == "stopped":
        found.expect(last in RUNGS, Fault.OTHER, f"{who} was stopped at epoch {last}, which is no rung")
    truth = {epoch: accuracy(trial.params["learning_rate"], epoch) for epoch in epochs}
    wrong = {e: v for e, v in trial.intermediate_values.items() if v != truth[e]}
    found.expect(not wrong, Fault.OTHER, f"{who} has other values than it reported: {wrong}")
    if trial.state is OptunaState.COMPLETE:
        right_value = trial.value == truth.get(EPOCHS)
        found.expect(right_value, Fault.OTHER, f"{who} has the value {trial.value}")


def _check_rungs(trials: Sequence[FrozenTrial], found: Findings) -> None:
    """The best value at a rung is never stopped there, whichever trial came first."""
    for rung in RUNGS:
        there = [trial for trial in trials if rung in trial.intermediate_values]
        best = max(there, key=lambda trial: trial.intermediate_values[rung], default=None)
        if best is not None:
            continued = max(best.intermediate_values) > rung
            found.expect(
                continued, Fault.OTHER, f"trial {best.number} was stopped at {rung}, where it is best"
            )


def _check_runs(study: optuna.Study, runs: Sequence[RunSeen], found: Findings) -> None:
    by_trial: dict[str | None, list[RunSeen]] = defaultdict(list)
    for run in runs:
        by_trial[run.tags.get("tune_rescon.trial")].append(run)
    _check_parent(by_trial.pop(None, []), found)
    late = study.user_attrs.get("mlflow_run_ids", {})
    for trial in study.trials:
        own = by_trial.pop(str(trial.number), [])
        found.expect(bool(own), Fault.RUNS_MISSING, f"trial {trial.number}")
        found.add(Fault.RUNS_TWICE, f"trial {trial.number} has {len(own)}", max(len(own) - 1, 0))
        for run in own[:1]:
            noted = trial.user_attrs.get("mlflow_run_id", late.get(str(trial.number)))
            found.expect(noted == run.run_id, Fault.OTHER, f"trial {trial.number} notes the run {noted}")
            _check_run(trial, run, found)
    found.expect(not by_trial, Fault.OTHER, f"MLflow has runs of trials {sorted(map(str, by_trial))}")


def _check_parent(parents: Sequence[RunSeen], found: Findings) -> None:
    found.expect(bool(parents), Fault.RUNS_MISSING, "the parent")
    found.add(Fault.RUNS_TWICE, f"{len(parents)} parents", max(len(parents) - 1, 0))
    for parent in parents:
        found.expect(parent.status == "FINISHED", Fault.RUNS_RUNNING, f"the parent is {parent.status}")
        tag = parent.tags.get("tune_rescon.state")
        found.expect(tag == "finished", Fault.OTHER, f"the parent's state is {tag}")


def _check_run(trial: FrozenTrial, run: RunSeen, found: Findings) -> None:
    who, last = f"trial {trial.number}", max(trial.intermediate_values, default=0)
    found.expect(run.status != "RUNNING", Fault.RUNS_RUNNING, who)
    tag, state = run.tags.get("tune_rescon.state"), trial.user_attrs.get("state")
    found.expect(tag == state, Fault.OTHER, f"{who} is {state} in the study and {tag} in MLflow")
    counted = {name: count_epochs((s for s, _ in run.history[name]), last) for name in METRICS}
    missing = max(missing for missing, _ in counted.values())
    twice = max(twice for _, twice in counted.values())
    found.add(Fault.RUN_EPOCHS_MISSING, f"{who}: {counted}", missing)
    found.add(Fault.RUN_EPOCHS_TWICE, f"{who}: {counted}", twice)
    values = dict(run.history["val_accuracy"])
    same = all(values.get(epoch, value) == value for epoch, value in trial.intermediate_values.items())
    found.expect(same, Fault.OTHER, f"{who} has other values in MLflow: {values}")
    closing = {name: len(run.history[name]) for name in _CLOSING}
    once = all(count == 1 for count in closing.values())
    found.expect(once, Fault.OTHER, f"{who}: closing metrics are not there once: {closing}")


def _check_checkpoints(trials: Sequence[FrozenTrial], folder: Path, found: Findings) -> None:
    ranked = sorted(trials, key=_rank)
    best = {f"trial_{trial.number:04d}": trial for trial in ranked[:KEPT]}
    kept = {path.name: sorted(path.iterdir()) for path in (folder / "checkpoints").glob("*")}
    for name, files in kept.items():
        found.expect(
            name in best, Fault.CHECKPOINTS, f"{name} is no winner and has {[f.name for f in files]}"
        )
    for name, trial in best.items():
        noted = trial.user_attrs.get("checkpoint")
        right = [str(file.relative_to(folder)) for file in kept.get(name, [])] == [noted]
        found.expect(right, Fault.CHECKPOINTS, f"{name} notes {noted} and has {kept.get(name)}")


def _rank(trial: FrozenTrial) -> tuple[int, float]:
    last = max(trial.intermediate_values, default=0)
    return -last, -trial.intermediate_values.get(last, 0.0)


def _check_files(folder: Path, trials: int, found: Findings) -> None:
    for name in ("space.yaml", "best.yaml", "report.html", "trials.csv"):
        found.expect((folder / name).is_file(), Fault.OTHER, f"{name} is missing")
    if (folder / "trials.csv").is_file():
        with (folder / "trials.csv").open() as file:
            numbers = [int(row["trial"]) for row in csv.DictReader(file)]
        found.expect(numbers == list(range(trials)), Fault.OTHER, f"trials.csv has {numbers}")
