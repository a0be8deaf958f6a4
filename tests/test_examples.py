"""The programs in examples/: importing them runs nothing, and their parts do what they say, without Ray."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tune_rescon.spaces import AutoResources, load_space

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def load(name: str) -> ModuleType:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"examples_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_compiles_and_names_its_own_command(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    compile(text, str(path), "exec")
    assert f"    python examples/{path.name}" in text
    # Ray's worker processes import the program.
    assert re.search(r'^if __name__ == "__main__":$', text, re.MULTILINE)


@pytest.mark.parametrize("name", ["quickstart", "own_images", "log_elsewhere"])
def test_importing_it_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert callable(load(name).main)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_own_images_example_shows_the_dataset(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("own_images")
    space = example.make_space(photographs, trials=3, epochs=6)
    assert (space.budget.trials, space.fidelity.max, space.fixed["image_size"]) == (3, 6, 64)
    assert isinstance(space.resources_per_trial, AutoResources)
    assert space.initial, "the shipped initial row fits"
    example.look(space)
    assert "found 2 classes; images: train 16 (cat 8, dog 8)" in capsys.readouterr().out


@pytest.mark.torch
def test_own_images_are_classified(photographs: Path, checkpoint: Path) -> None:
    predictions = load("own_images").classify(checkpoint, photographs)
    assert [path.name for path, _, _ in predictions] == [f"{number}.png" for number in range(8)] * 2
    assert all(0 < probability <= 1 for _, _, probability in predictions)


@pytest.mark.torch
@pytest.mark.usefixtures("without_ray", "without_export")
def test_the_quickstart_searches_and_adds_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    example = load("quickstart")
    # A few of its images are enough.
    monkeypatch.setattr(
        example.tr, "load_space", lambda name, settings: load_space(name, [*settings, "dataset.limit=200"])
    )
    assert len(example.search(tmp_path / "runs", trials=1, epochs=1).trials) == 1
    result = example.search(tmp_path / "runs", trials=1)
    example.show(result)
    output = capsys.readouterr().out
    assert "<StudyResult quickstart: finished, 2 trials, best trial_000" in output
    assert "learning_rate" in output
    assert result.kept_checkpoint(result.best) is not None
    run_study_notebook(tmp_path / "runs", monkeypatch, capsys)


def run_study_notebook(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the cells of the notebook on the quickstart's search."""
    notebook = json.loads((ROOT / "examples" / "read_a_study.ipynb").read_text(encoding="utf-8"))
    monkeypatch.setenv("TUNE_RESCON_STORAGE", str(storage))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "a notebook is committed without outputs"
            exec("".join(cell["source"]), names)
    assert len(names["table"]) == 2
    assert len(names["figure"].axes[0].lines) == 2
    assert [trial.number for trial in names["study"].trials] == [0, 1]
    assert "classes: 0, 1, 2" in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.nightly
@pytest.mark.usefixtures("without_ray")
def test_a_callback_sees_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    load("log_elsewhere").main(tmp_path / "runs", trials=1, epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "runs" / "logged.jsonl").read_text().splitlines()]
    assert lines[0] == {"event": "search", "trials": 0}
    first = [line["event"] for line in lines if line.get("trial") == 0]
    assert first[:2] == ["start", "epoch"]
    assert first[-1] == "end"
    epoch = next(line for line in lines if line["event"] == "epoch")
    assert epoch["epoch"] == 1
    assert 0 <= epoch["metrics"]["val_accuracy"] <= 1


@pytest.mark.torch
@pytest.mark.nightly
@pytest.mark.usefixtures("without_ray")
def test_each_trial_is_logged_as_a_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    load("log_to_wandb").main(tmp_path / "runs", trials=2, epochs=1)
    runs = sorted((tmp_path / "runs" / "wandb").glob("offline-run-*/run-with-wandb-*.wandb"))
    assert [run.stem for run in runs] == ["run-with-wandb-0000", "run-with-wandb-0001"]
    assert b"val_accuracy" in runs[0].read_bytes()


@pytest.mark.torch
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # warnings of gradio about other libraries
def test_the_gradio_page_classifies_an_image(photographs: Path, checkpoint: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install gradio")
    client = importlib.import_module("gradio_client")
    page = load("serve_with_gradio").page(str(checkpoint))
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    # The page must not change a file before it is decoded. This image is partly transparent.
    transparent = photographs / "transparent.png"
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(transparent)
    try:
        server = client.Client(url, verbose=False)
        for picture in (photographs / "cat" / "0.png", transparent):
            prediction = server.predict(client.handle_file(picture), api_name="/classify")
            ((_, label, probability),) = load("own_images").classify(checkpoint, picture)
            assert prediction["label"] == label
            assert prediction["confidences"][0]["confidence"] == pytest.approx(probability, abs=1e-6)
    finally:
        page.close()


@pytest.mark.torch
def test_the_custom_training_loop_reduces_the_loss() -> None:
    example = load("custom_training_loop")
    module = example.DigitClassifier(width=0.125)
    train, val = example.load_batches(32)
    images, labels = next(iter(train))
    assert module(images).shape == (32, 10)
    optimizer = module.configure_optimizers()
    losses = []
    module.log = lambda *_, **__: None
    for _ in range(6):
        optimizer.zero_grad()
        loss = module.training_step((images, labels), 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(val.dataset) == 359
