"""What plain Ray Tune's experiment is like after a storm, by the same counts.

A trial is known by its learning rate, which is drawn from a continuum: Tune's own identifiers change when it
draws a trial again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from storm.findings import Fault, Findings, count_epochs
from storm.mlflow_store import read_runs
from storm.plain import NAME, RUNGS
from storm.trainables import EPOCHS

__all__ = ["check_plain"]


def check_plain(storage: Path, trials: int) -> Findings:
    """Everything wrong with an experiment that should have ``trials`` terminated trials."""
    found = Findings()
    results, study = _results(storage)
    known = {row["learning_rate"]: row["epochs"] for row in results}
    if results:
        forgotten = sorted(_begun(storage) - set(known))
        lost = max(trials - len(known), len(forgotten))
        found.add(Fault.TRIALS_LOST, f"{len(known)} of {trials} in the results, not {forgotten}", lost)
    found.add(Fault.TRIALS_TWICE, "rows of the same trial", len(results) - len(known))
    for row in results:
        _check_epochs(row["learning_rate"], row["epochs"], row["error"], found)
    _check_study(study, found)
    _check_runs(storage, known, found)
    _check_restores(storage, found)
    return found


def _results(storage: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of Tune's results and of Optuna's study; none if no driver got to its end."""
    file = storage / "results.json"
    if not file.is_file():
        return [], []
    seen = json.loads(file.read_text())
    return seen["trials"], seen["study"]


def _begun(storage: Path) -> set[float]:
    """Trials that wrote at least one result."""
    written = [file for file in (storage / NAME).glob("*/result.json") if file.stat().st_size]
    return {json.loads((file.parent / "params.json").read_text())["learning_rate"] for file in written}


def _check_epochs(trial: float, epochs: list[int], error: str | None, found: Findings) -> None:
    last = max(epochs, default=0)
    # Only a rung or the last epoch ends a trial.
    should = next((rung for rung in (*RUNGS, EPOCHS) if rung >= last), EPOCHS)
    missing, twice = count_epochs(epochs, should)
    found.add(Fault.EPOCHS_MISSING, f"{trial:.4f}: {epochs}", missing)
    found.add(Fault.EPOCHS_TWICE, f"{trial:.4f}: {epochs}", twice)
    found.expect(error is None, Fault.TRIALS_LOST, f"{trial:.4f} ended with {error}")


def _check_study(study: list[dict[str, Any]], found: Findings) -> None:
    for trial in study:
        who = f"Optuna's trial {trial['number']}"
        found.expect(trial["state"] not in ("RUNNING", "WAITING"), Fault.RUNNING_IN_OPTUNA, who)
        if trial["state"] == "COMPLETE":
            # OptunaSearch keeps a trial's last report for its value: a whole trial shows one epoch less.
            last = max(trial["epochs"], default=0) + 1
            found.expect(last >= EPOCHS, Fault.WRONG_IN_OPTUNA, f"{who} is COMPLETE after epoch {last}")


def _check_runs(storage: Path, known: dict[float, list[int]], found: Findings) -> None:
    steps: dict[float, list[int]] = defaultdict(list)
    runs: Counter[float] = Counter()
    for run in read_runs(storage / "mlflow.db", ["val_accuracy"]):
        trial = float(run.params.get("learning_rate", "nan"))
        runs[trial] += 1
        steps[trial] += [step for step, _ in run.history["val_accuracy"]]
        found.expect(run.status != "RUNNING", Fault.RUNS_RUNNING, run.tags.get("trial_name", run.run_id))
    for trial, epochs in known.items():
        found.expect(runs[trial] > 0, Fault.RUNS_MISSING, f"{trial:.4f}")
        found.add(Fault.RUNS_TWICE, f"{trial:.4f} has {runs[trial]}", max(runs[trial] - 1, 0))
        missing, twice = count_epochs(steps[trial], max(epochs, default=0))
        found.add(Fault.RUN_EPOCHS_MISSING, f"{trial:.4f}: {sorted(steps[trial])}", missing)
        found.add(Fault.RUN_EPOCHS_TWICE, f"{trial:.4f}: {sorted(steps[trial])}", twice)


def _check_restores(storage: Path, found: Findings) -> None:
    notes = storage / "rungs.jsonl"
    for line in notes.read_text().splitlines() if notes.is_file() else []:
        restore = json.loads(line)
        lost = max(restore["reported"] - restore["held"], 0)
        found.add(Fault.RUNGS_EMPTY, f"{restore['held']} of {restore['reported']} values", lost)
