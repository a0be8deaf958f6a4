"""The check of a search after a fault storm detects every kind of damage."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from storm.check_ours import check_ours
from storm.findings import Fault
from storm.ours import NAME
from storm.trainables import LEDGER, train_ours

from tests.mlflow_in_process import no_network_exported
from tests.without_ray import search_without_ray
from tune_rescon.reporting import SearchPresentation
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, run_search

# The first test runs a search, the others copy its storage.
pytestmark = pytest.mark.server

TRIALS = 6


@pytest.fixture(scope="module")
def finished_storage(tmp_path_factory: pytest.TempPathFactory, fault_cache: Path, empty_store: Path) -> Path:
    """The storage of a valid search. Its trials ran in this process."""
    storage = tmp_path_factory.mktemp("whole")
    shutil.copyfile(empty_store, storage / "mlflow.db")
    space = load_space("digits", [f"budget.trials={TRIALS}", "sampler.seed=0"])
    options = RunOptions(name=NAME, storage=storage, cache_root=fault_cache, data_root=fault_cache)
    with pytest.MonkeyPatch.context() as patch, search_without_ray(), no_network_exported():
        patch.setenv(LEDGER, str(storage / "ledger"))
        patch.setattr("storm.trainables.EPOCH_SECONDS", 0.001)
        run_search(space, options, trainable=train_ours, presentation=SearchPresentation())
    assert check_ours(storage, TRIALS).notes == []
    return storage


def execute_in_study(storage: Path, statement: str) -> None:
    with sqlite3.connect(storage / NAME / "study.db") as database:
        database.execute(statement)


def execute_in_mlflow(storage: Path, statement: str) -> None:
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute(statement)


def add_second_run(storage: Path) -> None:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    run = client.create_run(experiment.experiment_id, tags={"tune_rescon.trial": "0"})
    client.set_terminated(run.info.run_id)


def discarded_checkpoints(storage: Path) -> Path:
    """Return the checkpoint folder of the only trial that keeps no checkpoint."""
    folders = {storage / NAME / "checkpoints" / f"trial_{number:04d}" for number in range(TRIALS)}
    (folder,) = [folder for folder in folders if not folder.exists()]
    return folder


def add_discarded_checkpoint(storage: Path) -> None:
    folder = discarded_checkpoints(storage)
    folder.mkdir()
    (folder / "last.ckpt").touch()


def remove_kept_checkpoint(storage: Path) -> None:
    shutil.rmtree(next((storage / NAME / "checkpoints").iterdir()))


DAMAGE: dict[str, tuple[Callable[[Path], object], Fault]] = {
    "a missing trial": (
        lambda storage: execute_in_study(storage, "UPDATE trials SET number = 7 WHERE number = 5"),
        Fault.TRIALS_LOST,
    ),
    "a missing epoch": (
        lambda storage: execute_in_study(
            storage, "DELETE FROM trial_intermediate_values WHERE step = 1 AND trial_id = 1"
        ),
        Fault.EPOCHS_MISSING,
    ),
    "a running trial": (
        lambda storage: execute_in_study(storage, "UPDATE trials SET state = 'RUNNING' WHERE number = 0"),
        Fault.RUNNING_IN_OPTUNA,
    ),
    "a wrong state": (
        lambda storage: execute_in_study(storage, "UPDATE trials SET state = 'FAIL' WHERE number = 0"),
        Fault.WRONG_IN_OPTUNA,
    ),
    "a missing epoch of one metric in MLflow": (
        lambda storage: execute_in_mlflow(storage, "DELETE FROM metrics WHERE key = 'val_loss' AND step = 1"),
        Fault.RUN_EPOCHS_MISSING,
    ),
    "a duplicate epoch in MLflow": (
        lambda storage: execute_in_mlflow(
            storage,
            "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan"
            " FROM metrics WHERE key = 'val_accuracy' AND step = 1",
        ),
        Fault.RUN_EPOCHS_TWICE,
    ),
    "a running run": (
        lambda storage: execute_in_mlflow(storage, "UPDATE runs SET status = 'RUNNING'"),
        Fault.RUNS_RUNNING,
    ),
    "two runs of one trial": (add_second_run, Fault.RUNS_TWICE),
    "a missing run": (
        lambda storage: execute_in_mlflow(
            storage, "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'trial_0003'"
        ),
        Fault.RUNS_MISSING,
    ),
    "a wrong value in MLflow": (
        lambda storage: execute_in_mlflow(
            storage, "UPDATE metrics SET value = 0.5 WHERE key = 'val_accuracy' AND step = 1"
        ),
        Fault.OTHER,
    ),
    "a checkpoint of a discarded trial": (add_discarded_checkpoint, Fault.CHECKPOINTS),
    "a missing checkpoint of a kept trial": (remove_kept_checkpoint, Fault.CHECKPOINTS),
    "a missing file": (lambda storage: (storage / NAME / "best.yaml").unlink(), Fault.OTHER),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_the_check_detects_each_kind_of_damage(case: str, finished_storage: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(finished_storage, storage)
    damage, fault = DAMAGE[case]
    damage(storage)
    assert check_ours(storage, TRIALS).counts[fault] >= 1
