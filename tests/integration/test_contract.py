"""The files, the study and the MLflow runs of a search match their documentation and each other."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
import pytest
from mlflow.entities import Run
from optuna.trial import TrialState as OptunaState
from ruamel.yaml import YAML

from tune_rescon.metric_names import METRICS
from tune_rescon.spaces import load_space
from tune_rescon.training import load_trained

pytestmark = pytest.mark.ray

TRIALS = 6

#: Metrics that a trial logs once in MLflow. On a GPU there is also its peak memory.
FINAL_METRICS = (
    "best_epoch",
    "best_val_accuracy",
    "compute_hours",
    "gmacs",
    "mean_images_per_second",
    "params_m",
)


@dataclass(frozen=True)
class SearchRun:
    """A search that the command ran."""

    code: int
    output: str
    storage: Path

    @property
    def folder(self) -> Path:
        return self.storage / "a"

    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "trials.csv").open() as file:
            return list(csv.DictReader(file))

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="a", storage=f"sqlite:///{self.folder / 'study.db'}")

    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.storage / 'mlflow.db'}")

    def runs(self) -> list[Run]:
        client = self.client()
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id]))

    def child(self, number: int) -> Run:
        (run,) = [r for r in self.runs() if r.data.tags.get("tune_rescon.trial") == str(number)]
        return run


@pytest.fixture(scope="module")
def search(
    short_tmp: Path, cache_root: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> SearchRun:
    storage = tmp_path_factory.mktemp("contract") / "runs"
    storage.mkdir()
    shutil.copyfile(empty_store, storage / "mlflow.db")
    command = [sys.executable, "-m", "tune_rescon.search", "--space", "digits", "--trials", str(TRIALS)]
    command += ["--name", "a", "--storage", str(storage), "--plain"]
    # Fewer epochs and images, a narrow network and one process make the search faster.
    command += ["--set", "fidelity.max=3", "--set", "fixed.width=0.125", "--concurrent", "1"]
    command += ["--set", "dataset.limit=200", "--set", "fixed.precise_bn_batches=0"]
    env = {**os.environ, "RAY_TMPDIR": str(short_tmp), "TUNE_RESCON_CACHE": str(cache_root)}
    process = subprocess.run(
        command, env=env, cwd=storage.parent, capture_output=True, text=True, check=False
    )
    return SearchRun(code=process.returncode, output=process.stdout + process.stderr, storage=storage)


def test_the_search_succeeds_and_prints_where_its_files_are(search: SearchRun) -> None:
    assert search.code == 0, search.output
    store = search.storage / "mlflow.db"
    assert search.output.startswith(
        f"a: preparing the data, then starting Ray on this machine, 1 worker; MLflow at {store}\n"
    )
    assert search.output.index("\nBest: ") < search.output.index("\nWriting the report and registering")
    for name in ("space.yaml", "study.db", "trials.csv", "best.yaml", "report.html"):
        assert (search.folder / name).is_file(), name
    assert f"Report: {search.folder / 'report.html'}" in search.output
    assert f"--backend-store-uri sqlite:///{store}" in search.output
    assert "Traceback" not in search.output
    assert "WARNING" not in search.output


def test_plain_output_has_one_line_per_event(search: SearchRun) -> None:
    assert "\x1b[" not in search.output
    epochs = re.findall(r"^trial_\d{4} epoch \d+/3: val_accuracy ", search.output, re.MULTILINE)
    assert len(epochs) == sum(int(row["epochs"]) for row in search.rows())


def test_the_written_space_is_the_one_that_was_searched(search: SearchRun) -> None:
    space = load_space(str(search.folder / "space.yaml"))
    assert (space.budget.trials, space.fidelity.max, space.fixed["width"]) == (TRIALS, 3, 0.125)


def test_optuna_study_has_every_trial_in_its_documented_state(search: SearchRun) -> None:
    study = search.study()
    assert [trial.number for trial in study.trials] == list(range(TRIALS))
    for trial in study.trials:
        assert list(trial.intermediate_values) == list(range(1, len(trial.intermediate_values) + 1))
        assert set(trial.user_attrs) >= {"state", "mlflow_run_id", "checkpoint"}
        expected = {"finished": OptunaState.COMPLETE, "stopped": OptunaState.PRUNED}
        assert trial.state is expected[trial.user_attrs["state"]]
        assert (trial.state is OptunaState.COMPLETE) == (len(trial.intermediate_values) == 3)


def test_study_csv_and_mlflow_agree_on_every_epoch(search: SearchRun) -> None:
    client = search.client()
    for trial, row in zip(search.study().trials, search.rows(), strict=True):
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert [float(value) for value in row["values"].split()] == values
        assert row["state"] == trial.user_attrs["state"]

        run = client.get_run(trial.user_attrs["mlflow_run_id"])
        assert run.data.tags["tune_rescon.trial"] == str(trial.number)
        assert run.data.tags["tune_rescon.state"] == trial.user_attrs["state"]
        logged = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_accuracy"))
        assert logged == list(enumerate(values, 1))
        for name in METRICS:
            history = client.get_metric_history(run.info.run_id, name)
            assert sorted(metric.step for metric in history) == list(range(1, len(values) + 1))


def test_mlflow_shows_children_under_one_parent(search: SearchRun) -> None:
    runs = search.runs()
    (parent,) = [run for run in runs if "tune_rescon.trial" not in run.data.tags]
    assert parent.info.run_name == "a"
    assert parent.info.status == "FINISHED"
    children = [run for run in runs if run is not parent]
    assert sorted(run.info.run_name for run in children) == [f"trial_{n:04d}" for n in range(TRIALS)]
    for run in children:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["tune_rescon.search"] == "a"
        assert run.info.status == "FINISHED"
    artifacts = {file.path for file in search.client().list_artifacts(parent.info.run_id)}
    assert artifacts >= {"space.yaml", "trials.csv", "best.yaml", "report.html"}


def test_closing_metrics_and_parameters_are_logged_once(search: SearchRun) -> None:
    for row in search.rows():
        run = search.child(int(row["trial"]))
        for name in FINAL_METRICS:
            assert math.isfinite(run.data.metrics[name])
            assert len(search.client().get_metric_history(run.info.run_id, name)) == 1
        # Trials of this space have no GPU, and CPU memory is not logged.
        assert set(run.data.metrics) == {*METRICS, *FINAL_METRICS}
        assert run.data.metrics["best_val_accuracy"] == float(row["best_value"])
        searched = {"depth", "learning_rate", "weight_decay", "label_smoothing", "drop_path"}
        assert set(run.data.params) == searched | {"layout", "width", "image_size", "batch_size", "optimizer"}
        assert run.data.params["drop_path"] == row["drop_path"]
        assert (row["drop_path"] == "none") == (row["depth"] == "56")


def test_best_yaml_names_the_best_finished_trial_and_its_checkpoint(search: SearchRun) -> None:
    best = YAML(typ="safe").load(search.folder / "best.yaml")
    finished = [row for row in search.rows() if row["state"] == "finished"]
    assert best["value"] == max(float(row["value"]) for row in finished)
    assert best["trial"] == search.study().best_trial.number
    network, about = load_trained(search.folder / best["checkpoint"])
    assert not network.training
    assert len(about.class_names) == 10
    assert about.epoch == best["best_epoch"]


def test_five_trials_keep_one_checkpoint_each(search: SearchRun) -> None:
    files = sorted(search.folder.glob("checkpoints/*/*"))
    assert len(files) == 5
    assert {path.name for path in files} == {"best.ckpt"}


def test_the_report_needs_no_network_connection(search: SearchRun) -> None:
    text = (search.folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?http", text)
    assert text.count('<td class="left state"') == TRIALS, "a row for each trial"
