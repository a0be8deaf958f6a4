"""The check of a search after a storm sees each thing that can be wrong with it."""

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

from tests.without_ray import search_without_ray
from tune_rescon.reporting import SearchPresentation
from tune_rescon.spaces import load_space
from tune_rescon.tuning import RunOptions, run_search

#: The first one runs a search, the others copy its storage.
pytestmark = pytest.mark.server

TRIALS = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fault_cache: Path, empty_store: Path) -> Path:
    """The storage of a search that nothing is wrong with. Its trials ran in this process."""
    storage = tmp_path_factory.mktemp("whole")
    shutil.copyfile(empty_store, storage / "mlflow.db")
    space = load_space("digits", [f"budget.trials={TRIALS}", "sampler.seed=0"])
    options = RunOptions(name=NAME, storage=storage, cache_root=fault_cache, data_root=fault_cache)
    with pytest.MonkeyPatch.context() as patch, search_without_ray():
        patch.setenv(LEDGER, str(storage / "ledger"))
        run_search(space, options, trainable=train_ours, presentation=SearchPresentation())
    return storage


def study(storage: Path, statement: str) -> None:
    with sqlite3.connect(storage / NAME / "study.db") as database:
        database.execute(statement)


def mlflow(storage: Path, statement: str) -> None:
    with sqlite3.connect(storage / "mlflow.db") as database:
        database.execute(statement)


def second_run(storage: Path) -> None:
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    run = client.create_run(experiment.experiment_id, tags={"tune_rescon.trial": "0"})
    client.set_terminated(run.info.run_id)


def loser(storage: Path) -> Path:
    """Where the checkpoints of the only trial that keeps none would be."""
    folders = {storage / NAME / "checkpoints" / f"trial_{number:04d}" for number in range(TRIALS)}
    (lost,) = [folder for folder in folders if not folder.exists()]
    return lost


def keep_a_losers_checkpoint(storage: Path) -> None:
    folder = loser(storage)
    folder.mkdir()
    (folder / "last.ckpt").touch()


def lose_a_winners_checkpoint(storage: Path) -> None:
    shutil.rmtree(next((storage / NAME / "checkpoints").iterdir()))


DAMAGE: dict[str, tuple[Callable[[Path], object], Fault]] = {
    "a trial is gone": (
        lambda at: study(at, "UPDATE trials SET number = 7 WHERE number = 5"),
        Fault.TRIALS_LOST,
    ),
    "an epoch is gone": (
        lambda at: study(at, "DELETE FROM trial_intermediate_values WHERE step = 1 AND trial_id = 1"),
        Fault.EPOCHS_MISSING,
    ),
    "a trial still runs": (
        lambda at: study(at, "UPDATE trials SET state = 'RUNNING' WHERE number = 0"),
        Fault.RUNNING_IN_OPTUNA,
    ),
    "a state is another one": (
        lambda at: study(at, "UPDATE trials SET state = 'FAIL' WHERE number = 0"),
        Fault.WRONG_IN_OPTUNA,
    ),
    "an epoch of one metric is not in MLflow": (
        lambda at: mlflow(at, "DELETE FROM metrics WHERE key = 'val_loss' AND step = 1"),
        Fault.RUN_EPOCHS_MISSING,
    ),
    "an epoch is twice in MLflow": (
        lambda at: mlflow(
            at,
            "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan"
            " FROM metrics WHERE key = 'val_accuracy' AND step = 1",
        ),
        Fault.RUN_EPOCHS_TWICE,
    ),
    "a run still runs": (lambda at: mlflow(at, "UPDATE runs SET status = 'RUNNING'"), Fault.RUNS_RUNNING),
    "a trial has two runs": (second_run, Fault.RUNS_TWICE),
    "a trial has no run": (
        lambda at: mlflow(at, "UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = 'trial_0003'"),
        Fault.RUNS_MISSING,
    ),
    "MLflow has another value": (
        lambda at: mlflow(at, "UPDATE metrics SET value = 0.5 WHERE key = 'val_accuracy' AND step = 1"),
        Fault.OTHER,
    ),
    "a loser keeps a checkpoint": (keep_a_losers_checkpoint, Fault.CHECKPOINTS),
    "a winner has none": (lose_a_winners_checkpoint, Fault.CHECKPOINTS),
    "a file is missing": (lambda at: (at / NAME / "best.yaml").unlink(), Fault.OTHER),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_the_check_detects_each_kind_of_damage(what: str, whole: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(whole, storage)
    assert check_ours(storage, TRIALS).notes == []
    damage, fault = DAMAGE[what]
    damage(storage)
    assert check_ours(storage, TRIALS).counts[fault] >= 1
