"""Storages and searches with unusual paths and names; a missing study is not created."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import extract_old_search
from tune_rescon.export import main as export
from tune_rescon.paths import ensure_home
from tune_rescon.predict import main as predict
from tune_rescon.report import main as report
from tune_rescon.search import main as search
from tune_rescon.storage import sqlite_file, sqlite_url
from tune_rescon.train import main as train
from tune_rescon.tuning import RunOptions, SearchFolder, StudyRecord, default_cache_root

pytestmark = pytest.mark.timeout(60)  # the first test imports the package


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the home and the current directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *(("{home}/{name}", name) for name in ("my runs", "a%20b", "a?b=c&d#e", "{x}", "Läufe", "file:x")),
        *((spelling, "50% of what?") for spelling in ("{name}", "~/{name}", "{home}/link")),
        ("{name}", "~x"),
    ],
)
def test_a_storage_may_have_any_name_and_spelling(
    spelling: str, name: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = extract_old_search(home / name)
    (home / "link").symlink_to(folder.storage, target_is_directory=True)
    before = sorted(home.iterdir())
    storage = spelling.format(home=home, name=name)
    assert report(["old", "--storage", storage, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best["checkpoint"] == str(folder.checkpoints(1) / "best.ckpt")
    assert report(["--list", "--storage", storage, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["name"], line["problem"]) == ("old", None)
    record = StudyRecord.load(folder.study_url, "old", metric="val_accuracy")
    record.set_attribute("seen", name)
    reloaded = StudyRecord.load(sqlite_url(folder.study_db), "old", metric="val_accuracy")
    assert (len(reloaded), reloaded.attribute("seen")) == (6, name)
    assert sqlite_file(folder.mlflow_uri) == folder.storage / "mlflow.db"
    assert sorted(home.iterdir()) == before, "a file was created beside the storage"


def test_the_mlflow_store_is_in_a_storage_of_any_name(empty_store: Path, tmp_path: Path) -> None:
    # Imported here: the import takes seconds, and most tests do not need MLflow.
    from mlflow import MlflowClient

    folder = SearchFolder(storage=tmp_path / "50% of what?", name="s")
    folder.storage.mkdir()
    shutil.copyfile(empty_store, folder.storage / "mlflow.db")
    MlflowClient(folder.mlflow_uri).create_experiment("here")
    assert MlflowClient(sqlite_url(folder.storage / "mlflow.db", driver="sqlite+pysqlite"))
    assert [path.name for path in tmp_path.iterdir()] == [folder.storage.name]


def test_a_renamed_folder_is_reported_but_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = extract_old_search(tmp_path)
    renamed = folder.path.rename(tmp_path / "mine")
    before = {path: path.read_bytes() for path in renamed.rglob("*") if path.suffix in (".db", ".yaml")}
    assert report(["mine", "--storage", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["trial"] == 1
    assert report(["--list", "--storage", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["problem"] is None
    assert search(["--resume", "mine", "--storage", str(tmp_path), "--plain"]) == 2
    stderr = capsys.readouterr().err
    assert f"but got mine: {renamed} holds the search 'old'" in stderr
    assert "Rename the folder to old, then give --resume old." in stderr
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_study_is_never_created(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = extract_old_search(tmp_path)
    folder.study_db.unlink()
    if content is not None:
        folder.study_db.write_bytes(content)
    before = sorted(path for path in folder.path.iterdir())
    picture = tmp_path / "picture.png"
    Image.new("L", (8, 8)).save(picture)
    for main, arguments in (
        (search, ["--resume", "old", "--plain"]),
        (report, ["old"]),
        (report, ["old", "--sync"]),
        (train, ["--from", "old", "--plain"]),
        (predict, ["old", str(picture)]),
    ):
        assert main([*arguments, "--storage", str(tmp_path)]) == 2
        stderr = capsys.readouterr().err
        assert str(folder.study_db) in stderr
        assert "restore the file from a copy" in stderr.lower()
        assert "Traceback" not in stderr
    assert [path for path in folder.path.iterdir() if path.name != "search.log"] == [
        path for path in folder.path.iterdir() if path in before
    ]
    assert (folder.study_db.read_bytes() if folder.study_db.exists() else None) == content


INVALID_NAMES = {
    "../x": "must be letters, digits",
    "n" * 256: "must be at most 255 characters",
    "n" * 5000: "255",
}


@pytest.mark.parametrize("name", INVALID_NAMES, ids=["outside", "long", "very long"])
def test_an_invalid_name_is_reported_by_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "space.yaml").write_text("version: 1")
    storage_option = ["--storage", str(tmp_path / "runs")]
    space_option = ["--space", "digits"]
    for main, arguments in (
        (search, [*space_option, "--name", name]),
        (search, ["--resume", name]),
        (search, [*space_option, "--warm-start", name]),
        (report, [name]),
        (report, [name, "--sync"]),
        (train, ["--from", name]),
        (train, ["--resume", name]),
    ):
        assert main([*arguments, *storage_option]) == 2
        assert INVALID_NAMES[name] in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "x" / "a.png")
    for main, arguments in (
        (predict, [name, str(tmp_path / "x")]),
        (export, [name, "--format", "safetensors", "--output", str(tmp_path / "a")]),
    ):
        assert main([*arguments, *storage_option]) == 2
        stderr = capsys.readouterr().err
        assert "MODEL" in stderr
        assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["mlflow.db", "mlartifacts", "MLflow.db", "mlflow.db-journal"])
def test_a_search_cannot_have_the_name_of_mlflows_store(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"everybody's")
    assert search(["--space", "digits", "--name", name, "--storage", str(tmp_path)]) == 2
    stderr = capsys.readouterr().err
    assert "must not be a name that MLflow's store has" in stderr
    assert "remove it" not in stderr
    assert (tmp_path / "mlflow.db").read_bytes() == b"everybody's"


def test_environment_variables_suffice_without_a_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(no_home))
    # The command changes the variable. The end of the test restores it, because it is set here.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TUNE_RESCON_CACHE", raising=False)
    extract_old_search(tmp_path)
    assert report(["old", "--storage", str(tmp_path), "--json"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("Error: TUNE_RESCON_CACHE: must be set where the user has no home directory")
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    assert default_cache_root() == RunOptions(name="s").cache_root == tmp_path / "cache"
    assert report(["old", "--storage", str(tmp_path), "--json"]) == 0


def test_home_is_set_from_cache_variable_if_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_user(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", no_user)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # Set before it is deleted, so that the end of the test restores the variable.
    monkeypatch.setenv("HOME", "/")
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("TUNE_RESCON_CACHE", raising=False)
    ensure_home()
    assert "HOME" not in os.environ
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path))
    ensure_home()
    assert Path.home() == Path("~/ray_results").expanduser().parent == tmp_path
    monkeypatch.setenv("HOME", "/home/me")
    ensure_home()
    assert os.environ["HOME"] == "/home/me"
