"""The commands from a search over final trainings to export and prediction."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

from tests.without_ray import search_without_ray

#: A search of two trials. Their networks learn enough in the final trainings.
SMALL = (
    "dataset.limit=700",
    "fidelity.max=1",
    "fixed.width=0.25",
    "parameters={learning_rate: {type: float, low: 0.05, high: 0.2, log: true}}",
    "initial=[{learning_rate: 0.1}]",
    "scheduler={type: none}",
)

#: A program that classifies pixels without this package.
ONNX_PROGRAM = """
import json, sys
import numpy as np, onnxruntime
assert not any(name.startswith("tune_rescon") for name in sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
pixels = np.load(sys.argv[2])
(probabilities,) = session.run(None, {"pixels": pixels})
print(json.dumps([names[k] for k in probabilities.argmax(1)]))
"""

# The test runs ten commands.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(400)]

Command = Callable[..., str]
"""Runs a command of the package by name on one storage, and returns its output."""


@pytest.fixture(
    params=[
        pytest.param("in process", marks=pytest.mark.torch),
        pytest.param("subprocess", marks=pytest.mark.ray),
    ]
)
def command(
    request: pytest.FixtureRequest,
    cache_root: Path,
    short_tmp: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Command]:
    """Runs commands in this process without Ray, or each in a subprocess with its own Ray."""
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(cache_root))
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    storage = ["--storage", str(tmp_path / "runs")]

    def run_in_process(name: str, *arguments: str | Path, code: int = 0) -> str:
        main = importlib.import_module(f"tune_rescon.{name}").main
        exit_code = main([*map(str, arguments), *storage])
        captured = capsys.readouterr()
        assert exit_code == code, captured.out + captured.err
        return str(captured.out)

    def run_in_subprocess(name: str, *arguments: str | Path, code: int = 0) -> str:
        line = [sys.executable, "-m", f"tune_rescon.{name}", *map(str, arguments), *storage]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    if request.param == "in process":
        with search_without_ray():
            yield run_in_process
    else:
        yield run_in_subprocess


def check_finals(runs: Path) -> None:
    """Assert that two finalists with two seeds are in the study, in ``finals.json`` and in MLflow."""
    study = optuna.load_study(study_name="a-final", storage=f"sqlite:///{runs / 'a-final' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert study.trials[0].params == study.trials[2].params != study.trials[1].params
    found = json.loads((runs / "a-final" / "finals.json").read_text())
    first, second = (one["test_accuracy"] for one in found["finalists"])
    assert first["mean"] >= second["mean"]
    recorded = sorted(trial.value for trial in study.trials if trial.value is not None)
    assert sorted([*first["values"], *second["values"]]) == recorded
    best = YAML(typ="safe").load(runs / "a-final" / "best.yaml")
    assert best["trial"] == found["finalists"][0]["trials"][0]
    client = mlflow.MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits"]
    for trial in study.trials:
        (run,) = [
            run
            for run in client.search_runs([experiment.experiment_id])
            if run.info.run_id == trial.user_attrs["mlflow_run_id"]
        ]
        (point,) = client.get_metric_history(run.info.run_id, "test_accuracy")
        assert (point.value, point.step) == (trial.value, 3)


def test_search_finals_export_and_predict_work_together(command: Command, tmp_path: Path) -> None:
    search = ["--space", "digits", "--name", "a", "--plain", "--trials", "2"]
    for setting in SMALL:
        search += ["--set", setting]
    command("search", *search)
    report = json.loads(command("report", "a", "--json"))
    assert report["state"] == "finished"

    train = ["--from", "a", "--top", "2", "--seeds", "2", "--epochs", "3", "--plain"]
    train_output = command("train", *train)
    assert "a-final: 2 finalists on the test images" in train_output
    check_finals(tmp_path / "runs")
    for name, images in (("a", "validation"), ("a-final", "test")):
        page = (tmp_path / "runs" / name / "report.html").read_text()
        assert "Mistakes of the best network" in page
        assert f" {images} images are classified correctly (" in page
    # The name exists now, and --resume has nothing left to do.
    command("train", *train, code=2)
    command("train", "--resume", "a-final", "--plain")
    check_finals(tmp_path / "runs")

    digits = load_digits().images[:40]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(digits):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(pictures / f"{number:02d}.png")

    by_name = command("predict", "a-final", pictures, "--json")
    lines = [json.loads(line) for line in by_name.splitlines()]
    right = sum(line["class"] == str(k) for line, k in zip(lines, load_digits().target[:40], strict=True))
    assert right >= 30, f"{right} of 40"
    assert command("predict", "models:/a-final@champion", pictures, "--json") == by_name

    output = tmp_path / "a.onnx"
    command("export", "a-final", "--format", "onnx", "--output", output)
    stack = [
        np.asarray(Image.open(one).resize((16, 16), Image.Resampling.BILINEAR))
        for one in sorted(pictures.iterdir())
    ]
    np.save(tmp_path / "pixels.npy", np.stack(stack)[:, None].astype(np.float32) / 255)
    (tmp_path / "classify.py").write_text(ONNX_PROGRAM)
    program = [sys.executable, "-I", *map(str, (tmp_path / "classify.py", output, tmp_path / "pixels.npy"))]
    classes = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert classes == [line["class"] for line in lines]
