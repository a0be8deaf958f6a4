"""The directory of a new search: whose it is, and what becomes of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.tuning import SearchFolder
from tune_rescon.tuning.folder import reserved


@pytest.fixture
def folder(tmp_path: Path) -> SearchFolder:
    return SearchFolder(storage=tmp_path / "runs", name="s")


@pytest.mark.parametrize(("file", "stays"), [("space.yaml", True), ("search.log", False)])
def test_a_search_that_fails_keeps_its_directory_only_if_it_had_begun(
    file: str, stays: bool, folder: SearchFolder
) -> None:
    with contextlib.suppress(RuntimeError), reserved(folder):
        (folder.path / file).touch()
        raise RuntimeError
    assert folder.path.exists() is stays
    assert folder.storage.exists() is stays


@pytest.mark.parametrize("remains", [[], ["search.log"], ["search.log", "study.db", ".space.yaml.4711"]])
def test_what_a_killed_driver_left_before_it_began_is_taken_over(
    remains: list[str], folder: SearchFolder
) -> None:
    folder.create()
    for name in remains:
        (folder.path / name).write_text("of the dead")
    with reserved(folder):
        assert list(folder.path.iterdir()) == []


@pytest.mark.parametrize("file", ["space.yaml", "trials.csv", "thesis.tex"])
def test_a_directory_with_anything_else_in_it_is_not_touched(file: str, folder: SearchFolder) -> None:
    folder.create()
    (folder.path / file).write_text("dear")
    with pytest.raises(StorageError, match="must be free"), reserved(folder):
        pass
    assert (folder.path / file).read_text() == "dear"


def test_a_name_is_one_drivers_while_its_search_begins(folder: SearchFolder) -> None:
    with reserved(folder):
        with pytest.raises(StorageError, match="must be free"), reserved(folder):
            pass
        assert folder.path.is_dir()


def test_who_lost_the_directory_before_it_was_locked_does_not_begin(
    folder: SearchFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(directory: int) -> bool:
        del directory
        folder.path.rename(folder.path.with_name("lost"))
        folder.create()
        return True

    monkeypatch.setattr("tune_rescon.tuning.folder._lock", lose)
    with pytest.raises(StorageError, match="must be free"), reserved(folder):
        pass
    assert folder.path.is_dir(), "it is the other driver's"
