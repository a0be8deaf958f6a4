"""`tune-rescon`: the commands by name, the shipped data, and the Python API."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import tune_rescon
from tune_rescon.__main__ import COMMANDS, main
from tune_rescon.models import list_presets
from tune_rescon.spaces import list_spaces


def test_the_program_is_installed() -> None:
    (found,) = entry_points(group="console_scripts", name="tune-rescon")
    assert found.value == "tune_rescon.__main__:main"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tune-rescon, version {tune_rescon.__version__}\n"


def test_help_lists_every_command_without_importing_it() -> None:
    script = "import sys, tune_rescon.__main__ as m; m.main(['--help']); print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in process.stdout for name in (*COMMANDS, "spaces", "presets"))
    assert not {f"tune_rescon.{name}" for name in COMMANDS} & set(process.stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_runs_the_module_of_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert importlib.import_module(f"tune_rescon.{name}").main(["--help"]) == 0
    assert help_text == capsys.readouterr().out


def test_an_unknown_command_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serach"]) == 2
    assert "No such command 'serach'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["report", "--list"], ["spaces"], ["init", "new"]])
def test_a_deleted_working_directory_is_bad_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deleted").mkdir()
    monkeypatch.chdir(tmp_path / "deleted")
    (tmp_path / "deleted").rmdir()
    assert main(arguments) == 2
    expected = (
        "Error: the working directory: must exist, but got No such file or directory. Change to another"
    )
    assert capsys.readouterr().err.startswith(expected)


def test_a_shell_completes_commands_and_options() -> None:
    def completions(words: str, count: int) -> str:
        environment = {
            "_TUNE_RESCON_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(count),
        }
        command = [sys.executable, "-m", "tune_rescon"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return process.stdout

    assert "plain,search" in completions("tune-rescon sea", 1)
    assert "plain,--space" in completions("tune-rescon search --sp", 2)


def test_the_shipped_spaces_and_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spaces"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in list_spaces())
    assert main(["presets"]) == 0
    output = capsys.readouterr().out
    assert all(name[:12] in output for name in list_presets())


@pytest.mark.torch
@pytest.mark.parametrize("name", importlib.import_module("tune_rescon").__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(tune_rescon, name) is not None
