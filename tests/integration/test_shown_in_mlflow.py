"""Searches whose trials run in this process, and what MLflow shows of them.

The network of the winner is not exported; tests/tracking/test_registry.py tests that.
"""

from __future__ import annotations

import html
import json
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from tests.own_networks import SMALL_SEARCH
from tune_rescon.config import TrialState
from tune_rescon.inference import write_mistakes
from tune_rescon.reporting import SearchPresentation
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import RunOptions, StudyResult, run_search

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("without_ray", "without_export")]


def test_an_error_in_on_result_still_writes_the_report_and_mlflow_runs(
    small_space: Space, options: RunOptions
) -> None:
    space = small_space.model_copy(update={"budget": small_space.budget.model_copy(update={"trials": 1})})

    def fail(_: StudyResult) -> None:
        raise RuntimeError("no room for the table")

    with pytest.raises(RuntimeError, match="no room"):
        run_search(
            space,
            options,
            trainable=learn_nothing,
            presentation=SearchPresentation(),
            on_result=fail,
        )
    assert (Path(str(options.storage)) / "s" / "report.html").is_file()
    client = mlflow.MlflowClient(f"sqlite:///{options.storage}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'digits'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["tune_rescon.state"] for run in runs} == {"finished"}
    assert len(runs) == 2


def test_further_metrics_are_recorded_and_shown_in_mlflow(
    options: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "def hits(scores, labels):\n    return (scores.argmax(1) == labels).sum()\n"
    (tmp_path / "clinic.py").write_text(program)
    monkeypatch.chdir(tmp_path)
    settings = [*SMALL_SEARCH, "budget.trials=1", "fidelity.max=2", "dataset.limit=200"]
    metric = "metric={name: val_hits, mode: max, log: [val_macro_f1, clinic:hits]}"
    space = load_space("digits", [*settings, metric])
    result = run_search(space, options)
    (trial,) = result.trials
    assert trial.state is TrialState.FINISHED, trial.error
    assert trial.values == trial.history["val_hits"]
    assert len(trial.history["val_macro_f1"]) == 2
    assert trial.mlflow_run_id is not None
    run = mlflow.MlflowClient(f"sqlite:///{options.storage}/mlflow.db").get_run(trial.mlflow_run_id)
    assert run.data.metrics["val_hits"] == trial.values[-1]
    assert run.data.metrics["best_val_hits"] == max(trial.values)
    assert run.data.metrics["val_macro_f1"] == trial.history["val_macro_f1"][-1]


def test_metrics_by_class_are_recorded_and_shown_in_mlflow_and_in_the_report(
    options: RunOptions, tmp_path: Path
) -> None:
    drawn = np.random.default_rng(0)
    for shade, name in enumerate(("a&b", "a+b", "c")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for count in range(10):
            pixels = drawn.integers(80 * shade, 80 * shade + 80, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{count}.png")
    settings = [*SMALL_SEARCH, f"path={tmp_path / 'images'}", "budget.trials=1", "fidelity.max=2"]
    settings += [
        "dataset.val_fraction=0.3",
        "metric={name: val_f1/a+b, mode: max, log: [val_accuracy_by_class]}",
    ]
    space = load_space("digits", ["dataset.name=folder", *settings])
    result = run_search(
        space, options, presentation=SearchPresentation(partial(write_mistakes, options=options))
    )
    (trial,) = result.trials
    assert trial.state is TrialState.FINISHED, trial.error
    assert trial.values == trial.history["val_f1/a+b"]
    by_class = [trial.history[f"val_accuracy/{name}"] for name in ("a&b", "a+b", "c")]
    assert np.mean(by_class, axis=0) == pytest.approx(trial.history["val_accuracy"]), "three images of each"
    assert trial.mlflow_run_id is not None
    client = mlflow.MlflowClient(f"sqlite:///{options.storage}/mlflow.db")
    logged = client.get_run(trial.mlflow_run_id).data.metrics
    assert [logged[f"val_accuracy/{name}"] for name in ("a_b", "a_b 2", "c")] == [one[-1] for one in by_class]
    assert (logged["val_f1/a_b"], logged["best_val_f1/a_b"]) == (trial.values[-1], max(trial.values))
    worst, *_ = json.loads((result.folder / "mistakes.json").read_text())["classes"]
    page = (result.folder / "report.html").read_text()
    assert f'<td class="left">{html.escape(worst[0])}</td><td>3</td>' in page
