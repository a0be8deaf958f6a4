"""Everything a person can get wrong: a clear message, exit 2, no traceback, nothing left behind."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from PIL import Image

from tune_rescon.search import main
from tune_rescon.spaces import list_spaces

FOLDER = ["--space", "folder", "--set", "dataset.path={images}"]

CASES = {
    "no space": ([], "Give --space"),
    "unknown space": (["--space", "nope"], "unknown space 'nope'; known: att56"),
    "no such file": (["--space", "nope.yaml"], "nope.yaml"),
    "unknown option": (["--spice", "digits"], "--spice"),
    "unknown key": (["--set", "budget.trial=3"], "unknown key 'trial' (did you mean 'trials'?)"),
    "unknown parameter": (["--set", "fixed.depht=56"], "unknown parameter 'depht' (did you mean 'depth'?)"),
    "unknown dataset": (["--set", "dataset.name=mnist"], "unknown dataset 'mnist'; known: cifar10"),
    "unknown preset": (["--set", "fixed.preset=att"], "unknown preset 'att'; known: attention128"),
    "unknown metric": (["--set", "metric.name=val_acc"], "(did you mean 'val_accuracy'?)"),
    "impossible range": (["--set", "parameters.learning_rate.low=1.0"], "`low < high` must hold"),
    "no such parent": (["--set", "parameters.drop_path.when.parameter=x"], "must name a categorical"),
    "tiny image": (["--set", "fixed.image_size=8"], "must be in [16, 1024], but got 8"),
    "too small for the layout": (
        ["--set", "fixed.layout=imagenet", "--set", "fixed.image_size=16"],
        "needs at least 17 pixels",
    ),
    "a depth that cannot be": (
        ["--set", "parameters.depth.choices=[92, 156]"],
        "The nearest is 164",
    ),
    "no trials": (["--trials", "0"], "must be at least 1, but got 0"),
    "a word for a number": (["--trials", "many"], "not a valid integer"),
    "no tracking store": (["--tracking-uri", "./mlruns"], "must begin with one of"),
    "no such search": (["--resume", "a"], "no search named 'a'"),
    "a bad name": (["--name", "../a"], "--name"),
    "no path": (["--space", "folder"], "--set dataset.path="),
    "no images": ([*FOLDER, "--set", "dataset.path=nowhere"], "nowhere"),
    "one class": ([*FOLDER[:3], "dataset.path={one_class}"], "class"),
    "an empty class": ([*FOLDER[:3], "dataset.path={empty_class}"], "dog"),
    "no weights to begin with": (["--init-from", "nowhere.ckpt"], "init_from: must be a file that exists"),
    "weights that are none": (
        ["--init-from", "{weights}"],
        "must be a whole file that torch wrote",
    ),
    "weights of another network": (
        ["--init-from", "{winner}", "--set", "parameters.depth.choices=[56, 92]"],
        "init_from, with depth 56: a trial's network must be that of",
    ),
    "a broken picture": ([*FOLDER[:3], "dataset.path={broken}"], "broken.jpg"),
}


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What the command imports takes seconds, and is no part of what is timed."""
    for module in ("tune_rescon.tuning.search", "tune_rescon.reporting.run"):
        importlib.import_module(module)


@pytest.fixture
def folders(tmp_path: Path, checkpoint: Path) -> dict[str, Path]:
    """Image folders, each wrong in its own way, and files of weights."""
    made = {name: tmp_path / name for name in ("images", "one_class", "empty_class", "broken")}
    for folder in made.values():
        for label in ("cat", "dog"):
            (folder / label).mkdir(parents=True)
            for index in range(8):
                Image.new("RGB", (20, 20), (index, 9, 9)).save(folder / label / f"{index}.png")
    for file in [*(made["one_class"] / "dog").iterdir(), *(made["empty_class"] / "dog").iterdir()]:
        file.unlink()
    (made["one_class"] / "dog").rmdir()
    (made["broken"] / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    (tmp_path / "weights.ckpt").write_bytes(b"no weights")
    return {**made, "weights": tmp_path / "weights.ckpt", "winner": checkpoint}


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
    given = [argument.format(**folders) for argument in arguments]
    named = "--space" in given or "--resume" in given or not given or "--spice" in given
    argv = [*([] if named else ["--space", "digits"]), *given, "--storage", str(storage), "--plain"]
    assert main(argv) == 2
    said = capsys.readouterr()
    assert expected in said.err
    assert "Traceback" not in said.err + said.out
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
@pytest.mark.parametrize("begin", [["--space", "digits"], ["--resume", "a"]])
def test_an_unusable_storage_is_reported(
    begin: list[str], storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert main([*begin, "--storage", str(tmp_path / storage)]) == 2
    said = capsys.readouterr().err
    missing = begin[0] == "--resume" and storage.startswith("file")
    wanted = "no search named 'a'" if missing else "--storage: the storage must be a directory"
    assert wanted in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", list_spaces())
def test_every_shipped_space_is_shown_by_a_dry_run(
    name: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--space", name, "--dry-run"]
    if name == "folder":
        argv += ["--set", f"dataset.path={folders['images']}"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "rungs (epochs):" in said
    assert "worst-case PMACs" in said
