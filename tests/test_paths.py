"""Output paths are checked before anything is loaded: a message of one paragraph, exit code 2, no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.errors import StorageError
from tune_rescon.export import main as export
from tune_rescon.paths import check_output_file, check_output_folder
from tune_rescon.predict import main as predict
from tune_rescon.report import main as report
from tune_rescon.tuning import default_cache_root, resolve_data_root


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Paths by their problem; `new`, `file` and `empty` are valid for some commands."""
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
        # Nobody can create a file there, not even root.
        "not writable": Path("/proc/new"),
    }


@pytest.mark.parametrize(
    ("path_name", "problem"),
    [
        ("new", ""),
        ("file", ""),
        ("empty", "Is a directory"),
        ("no folder", "No such file or directory"),
        ("under a file", "Not a directory"),
        ("not writable", "No such file or directory"),
    ],
)
def test_an_unwritable_output_file_is_refused(path_name: str, problem: str, paths: dict[str, Path]) -> None:
    before = sorted(paths["new"].parent.rglob("*"))
    if problem:
        with pytest.raises(
            StorageError, match=r"--f: must be a file that can be written, but got .*"
        ) as raised:
            check_output_file(paths[path_name], where="--f")
        assert f"{paths[path_name]} ({problem})" in str(raised.value)
    else:
        check_output_file(paths[path_name], where="--f")
    assert sorted(paths["new"].parent.rglob("*")) == before
    assert paths["file"].read_text() == "kept"


@pytest.mark.parametrize(
    ("path_name", "any_folder", "new"),
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
    path_name: str, any_folder: str, new: str, paths: dict[str, Path]
) -> None:
    before = sorted(paths["new"].parent.rglob("*"))
    for problem, is_new in ((any_folder, False), (new, True)):
        if problem:
            with pytest.raises(StorageError, match=r"--f: must be a folder that can be") as raised:
                check_output_folder(paths[path_name], where="--f", is_new=is_new)
            assert f"{paths[path_name]} ({problem})" in str(raised.value)
        else:
            check_output_folder(paths[path_name], where="--f", is_new=is_new)
    assert sorted(paths["new"].parent.rglob("*")) == before


#: Every command with an output path besides the storage, an invalid path, and the message.
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
    command: str, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main, command_line, message = COMMANDS[command]
    before = sorted(paths["new"].parent.rglob("*"))
    assert main([str(paths.get(word, word)) for word in command_line]) == 2
    error = capsys.readouterr().err
    assert f"Error: {message}" in error
    assert sorted(paths["new"].parent.rglob("*")) == before


@pytest.mark.torch
@pytest.mark.parametrize(
    ("form", "name", "other_format"),
    [
        ("onnx", "a.safetensors", "safetensors"),
        ("safetensors", "a.ONNX", "onnx"),
        ("onnx", "a.pt2", "torch-export"),
        ("timm", "a.onnx", "onnx"),
    ],
)
def test_a_suffix_of_another_format_is_refused(
    form: str, name: str, other_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(["m", "--format", form, "--output", str(tmp_path / name)]) == 2
    message = capsys.readouterr().err
    assert f"--output: must be a path for the format {form}" in message
    assert f"is the suffix of the format {other_format}." in message


@pytest.mark.torch
@pytest.mark.parametrize(
    ("form", "name"), [("onnx", "a.onnx"), ("onnx", "a"), ("onnx", "a.v2"), ("timm", "a.1")]
)
def test_other_suffixes_are_accepted(
    form: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(["m", "--format", form, "--output", str(tmp_path / name)]) == 2
    assert "--output" not in capsys.readouterr().err, "the error is the missing model"


def test_a_quoted_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands `~` in `--output=~/x`, or in a file of environment variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TUNE_RESCON_DATA", "~/images")
    monkeypatch.setenv("TUNE_RESCON_CACHE", "~/decoded")
    assert resolve_data_root() == tmp_path / "images"
    assert resolve_data_root("~/other") == tmp_path / "other"
    assert default_cache_root() == tmp_path / "decoded"


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (report, ["s", "--html=~/no/x"]),
        (report, ["s", "--errors=~/no/x"]),
        (predict, ["s", __file__, "--masks=~/file/x"]),
        (export, ["s", "--format=safetensors", "--output=~/no/x.safetensors"]),
    ],
)
def test_an_output_path_may_begin_with_a_quoted_home_directory(
    command: Callable[[list[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").touch()
    flag, _, path = arguments[-1].partition("=")
    assert command(arguments) == 2
    message = capsys.readouterr().err
    assert f"{flag}: must be a" in message
    assert f"but got {path.replace('~', str(tmp_path))} (" in message
