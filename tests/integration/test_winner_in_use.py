"""From a search to its winner in other hands, through the commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
from PIL import Image
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

pytestmark = pytest.mark.ray

#: A program that knows nothing of this package: pixels in, classes out.
STRANGER = """
import json, sys
import numpy as np, onnxruntime
assert not any(name.startswith("tune_rescon") for name in sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
pixels = np.load(sys.argv[2])
(probabilities,) = session.run(None, {"pixels": pixels})
print(json.dumps([names[k] for k in probabilities.argmax(1)]))
"""


def command(*arguments: str | Path, folder: Path, code: int = 0) -> str:
    environment = {**os.environ, "RAY_TMPDIR": str(folder), "TUNE_RESCON_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def check_finals(runs: Path) -> None:
    """Two finalists twice each, in the study, in ``finals.json`` and in MLflow; each judged once."""
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


def test_from_a_search_to_its_winner_in_other_hands(short_tmp: Path, tmp_path: Path) -> None:
    folder = short_tmp / "winner"
    folder.mkdir()
    storage = ["--storage", str(folder / "runs")]
    search = ["--space", "digits", "--name", "a", "--plain", "--trials", "3", "--set", "fidelity.max=3"]
    command("tune_rescon.search", *search, *storage, folder=folder)
    report = json.loads(command("tune_rescon.report", "a", "--json", *storage, folder=folder))
    assert report["state"] == "finished"

    train = ["--from", "a", "--top", "2", "--seeds", "2", "--plain"]
    said = command("tune_rescon.train", *train, *storage, folder=folder)
    assert "a-final: 2 finalists on the test images" in said
    check_finals(folder / "runs")
    # Its name is taken now; by --resume there is nothing left to do.
    command("tune_rescon.train", *train, *storage, folder=folder, code=2)
    command("tune_rescon.train", "--resume", "a-final", "--plain", *storage, folder=folder)
    check_finals(folder / "runs")

    digits = load_digits().images[:40]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, image in enumerate(digits):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(pictures / f"{number:02d}.png")

    by_name = command("tune_rescon.predict", "a-final", pictures, "--json", *storage, folder=folder)
    lines = [json.loads(line) for line in by_name.splitlines()]
    right = sum(line["class"] == str(k) for line, k in zip(lines, load_digits().target[:40], strict=True))
    assert right >= 30, f"{right} of 40"

    champion = "models:/a-final@champion"
    by_mlflow = command("tune_rescon.predict", champion, pictures, "--json", *storage, folder=folder)
    assert by_mlflow == by_name

    output = tmp_path / "a.onnx"
    command("tune_rescon.export", "a-final", "--format", "onnx", "--output", output, *storage, folder=folder)
    stack = [
        np.asarray(Image.open(one).resize((16, 16), Image.Resampling.BILINEAR))
        for one in sorted(pictures.iterdir())
    ]
    np.save(tmp_path / "pixels.npy", np.stack(stack)[:, None].astype(np.float32) / 255)
    (tmp_path / "stranger.py").write_text(STRANGER)
    stranger = [sys.executable, "-I", *map(str, (tmp_path / "stranger.py", output, tmp_path / "pixels.npy"))]
    said = json.loads(subprocess.run(stranger, capture_output=True, text=True, check=True).stdout)
    assert said == [line["class"] for line in lines]
