"""Where a command writes is checked before anything is loaded: one paragraph, exit 2, and nothing left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.export import main as export
from tune_rescon.paths import check_output_file, check_output_folder
from tune_rescon.predict import main as predict
from tune_rescon.report import main as report


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Paths by what is wrong with them; `new`, `file` and `empty` are right for some."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "empty").mkdir()
    return {
        "new": tmp_path / "new",
        "file": tmp_path / "file",
        "full": tmp_path / "full",
        "empty": tmp_path / "empty",
        "no folder": tmp_path / "no" / "such" / "new",
        "under a file": tmp_path / "file" / "new",
        # No user may make a file there, and root is one.
        "not writable": Path("/proc/new"),
    }


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("new", ""),
        ("file", ""),
        ("empty", "Is a directory"),
        ("no folder", "No such file or directory"),
        ("under a file", "Not a directory"),
        ("not writable", "No such file or directory"),
    ],
)
def test_an_unwritable_output_file_is_refused(place: str, why: str, places: dict[str, Path]) -> None:
    before = sorted(places["new"].parent.rglob("*"))
    if why:
        with pytest.raises(
            StorageError, match=r"--f: must be a file that can be written, but got .*"
        ) as raised:
            check_output_file(places[place], where="--f")
        assert f"{places[place]} ({why})" in str(raised.value)
    else:
        check_output_file(places[place], where="--f")
    assert sorted(places["new"].parent.rglob("*")) == before
    assert places["file"].read_text() == "kept"


@pytest.mark.parametrize(
    ("place", "anywhere", "new"),
    [
        ("new", "", ""),
        ("empty", "", ""),
        ("full", "", "Directory not empty"),
        ("file", "Not a directory", "Not a directory"),
        ("no folder", "", "No such file or directory"),
        ("under a file", "Not a directory", "Not a directory"),
        ("not writable", "No such file or directory", "No such file or directory"),
    ],
)
def test_an_unwritable_output_folder_is_refused(
    place: str, anywhere: str, new: str, places: dict[str, Path]
) -> None:
    before = sorted(places["new"].parent.rglob("*"))
    for why, is_new in ((anywhere, False), (new, True)):
        if why:
            with pytest.raises(StorageError, match=r"--f: must be a folder that can be") as raised:
                check_output_folder(places[place], where="--f", is_new=is_new)
            assert f"{places[place]} ({why})" in str(raised.value)
        else:
            check_output_folder(places[place], where="--f", is_new=is_new)
    assert sorted(places["new"].parent.rglob("*")) == before


#: Every command with a path to write to, besides the storage: a place that is wrong, and what is said.
#: No model and no search of these names exists, so a message about the path shows that it came first.
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str], str]] = {
    "export, a file": (
        export,
        ["m", "--format", "onnx", "--output", "no folder"],
        "--output: must be a file that can be written",
    ),
    "export, a folder is there": (
        export,
        ["m", "--format", "safetensors", "--output", "empty"],
        "--output: must be a file that can be written",
    ),
    "export, a folder that is full": (
        export,
        ["m", "--format", "timm", "--output", "full"],
        "--output: must be a folder that can be made, or an empty one",
    ),
    "export, a file is there": (
        export,
        ["m", "--format", "tensorflow", "--output", "file"],
        "--output: must be a folder that can be made, or an empty one",
    ),
    "predict --masks": (
        predict,
        ["m", "file", "--masks", "under a file"],
        "--masks: must be a folder that can be written",
    ),
    "report --html": (
        report,
        ["m", "--html", "no folder"],
        "--html: must be a file that can be written",
    ),
    "report --errors": (
        report,
        ["m", "--errors", "empty"],
        "--errors: must be a file that can be written",
    ),
}


@pytest.mark.torch
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_checks_its_output_path_first(
    command: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main, words, said = COMMANDS[command]
    before = sorted(places["new"].parent.rglob("*"))
    assert main([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert f"Error: {said}" in error
    assert sorted(places["new"].parent.rglob("*")) == before


@pytest.mark.torch
@pytest.mark.parametrize(
    ("form", "name", "owner"),
    [
        ("onnx", "a.safetensors", "safetensors"),
        ("safetensors", "a.ONNX", "onnx"),
        ("onnx", "a.pt2", "torch-export"),
        ("timm", "a.onnx", "onnx"),
    ],
)
def test_a_suffix_of_another_format_is_refused(
    form: str, name: str, owner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(["m", "--format", form, "--output", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert f"--output: must be a path for the format {form}" in said
    assert f"is the suffix of the format {owner}." in said


@pytest.mark.torch
@pytest.mark.parametrize(
    ("form", "name"), [("onnx", "a.onnx"), ("onnx", "a"), ("onnx", "a.v2"), ("timm", "a.1")]
)
def test_other_suffixes_are_accepted(
    form: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(["m", "--format", form, "--output", str(tmp_path / name)]) == 2
    assert "--output" not in capsys.readouterr().err, "the model is what is missing"
