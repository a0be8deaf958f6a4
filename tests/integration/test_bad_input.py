"""Bad input gives a clear message, exit code 2 and no traceback, and leaves no files."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.search import main

FOLDER = ["--space", "folder", "--set", "dataset.path={images}"]

CASES = {
    "no space": ([], "Give --space"),
    "unknown space": (["--space", "nope"], "unknown space 'nope'; known: att56"),
    "missing space file": (["--space", "nope.yaml"], "nope.yaml"),
    "unknown option": (["--spice", "digits"], "--spice"),
    "unknown key": (["--set", "budget.trial=3"], "unknown key 'trial' (did you mean 'trials'?)"),
    "unknown parameter": (["--set", "fixed.depht=56"], "unknown parameter 'depht' (did you mean 'depth'?)"),
    "unknown dataset": (["--set", "dataset.name=mnist"], "unknown dataset 'mnist'; known: cifar10"),
    "unknown preset": (["--set", "fixed.preset=att"], "unknown preset 'att'; known: attention128"),
    "unknown metric": (["--set", "metric.name=val_acc"], "(did you mean 'val_accuracy'?)"),
    "impossible range": (["--set", "parameters.learning_rate.low=1.0"], "`low < high` must hold"),
    "unknown parent parameter": (
        ["--set", "parameters.drop_path.when.parameter=x"],
        "must name a categorical",
    ),
    "tiny image": (["--set", "fixed.image_size=8"], "must be in [16, 1024], but got 8"),
    "too small for the layout": (
        ["--set", "fixed.layout=imagenet", "--set", "fixed.image_size=16"],
        "needs at least 17 pixels",
    ),
    "invalid depth": (
        ["--set", "parameters.depth.choices=[92, 156]"],
        "The nearest is 164",
    ),
    "no trials": (["--trials", "0"], "must be at least 1, but got 0"),
    "number of trials is no number": (["--trials", "many"], "not a valid integer"),
    "invalid tracking URI": (["--tracking-uri", "./mlruns"], "must begin with one of"),
    "missing search": (["--resume", "a"], "no search named 'a'"),
    "invalid name": (["--name", "../a"], "--name"),
    "no dataset path": (["--space", "folder"], "--set dataset.path="),
    "no images": ([*FOLDER, "--set", "dataset.path=nowhere"], "nowhere"),
    "one class": ([*FOLDER[:3], "dataset.path={one_class}"], "class"),
    "an empty class": ([*FOLDER[:3], "dataset.path={empty_class}"], "dog"),
    "missing initial weights": (["--init-from", "nowhere.ckpt"], "init_from: must be a file that exists"),
    "a file without weights": (
        ["--init-from", "{weights}"],
        "must be a whole file that torch wrote",
    ),
    "weights of another network": (
        ["--init-from", "{winner}", "--set", "parameters.depth.choices=[56, 92]"],
        "init_from, with depth 56: a trial's network must be that of",
    ),
    "a broken image": ([*FOLDER[:3], "dataset.path={broken}"], "broken.jpg"),
}


@pytest.fixture(scope="module", autouse=True)
def _import_modules() -> None:
    """Import the command's modules outside the tests' time limit."""
    for module in ("tune_rescon.tuning.search", "tune_rescon.reporting.run"):
        importlib.import_module(module)


@pytest.fixture
def folders(tmp_path: Path, checkpoint: Path) -> dict[str, Path]:
    """A valid image folder, folders with one mistake each, and files of weights."""
    created = {name: tmp_path / name for name in ("images", "one_class", "empty_class", "broken")}
    for folder in created.values():
        for label in ("cat", "dog"):
            (folder / label).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (20, 20), (index, 9, 9)).save(folder / label / f"{index}.png")
    for file in [*(created["one_class"] / "dog").iterdir(), *(created["empty_class"] / "dog").iterdir()]:
        file.unlink()
    (created["one_class"] / "dog").rmdir()
    (created["broken"] / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    (tmp_path / "weights.ckpt").write_bytes(b"no weights")
    return {**created, "weights": tmp_path / "weights.ckpt", "winner": checkpoint}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_reported_and_leaves_no_files(
    case: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    storage = tmp_path / "runs"
    arguments, expected = CASES[case]
    options = [argument.format(**folders) for argument in arguments]
    has_start = "--space" in options or "--resume" in options or not options or "--spice" in options
    argv = [*([] if has_start else ["--space", "digits"]), *options, "--storage", str(storage), "--plain"]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert not storage.exists()


def test_an_existing_name_is_refused_and_its_files_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "space.yaml").write_text("precious")
    assert main(["--space", "digits", "--name", "a", "--storage", str(tmp_path)]) == 2
    assert "--resume a" in capsys.readouterr().err
    assert (tmp_path / "a" / "space.yaml").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("storage", ["file", "file/runs", "x" * 300])
@pytest.mark.parametrize("start", [["--space", "digits"], ["--resume", "a"]])
def test_an_unusable_storage_is_reported(
    start: list[str], storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert main([*start, "--storage", str(tmp_path / storage)]) == 2
    stderr = capsys.readouterr().err
    missing = start[0] == "--resume" and storage.startswith("file")
    expected = "no search named 'a'" if missing else "--storage: the storage must be a directory"
    assert expected in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
