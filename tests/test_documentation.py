"""Every command line in the documentation is accepted; the tutorial's searches pass a dry run."""

from __future__ import annotations

import importlib
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tune_rescon.__main__ import COMMANDS, main
from tune_rescon.__main__ import tune_rescon as group

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: The start of a command line in the documentation.
_COMMAND_START = re.compile(r"^\s+(?:tune-rescon|python -m tune_rescon\.)")


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command line in a page's indented blocks, without the program's name."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if _COMMAND_START.match(line):
            while line.endswith("\\"):
                line = line.removesuffix("\\") + next(lines)
            words = shlex.split(line.strip().replace("python -m tune_rescon.", "tune-rescon "), comments=True)
            yield words[1:]


COMMAND_LINES = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)}")
    for page in PAGES
    for words in command_lines(page)
]


def parse(words: list[str]) -> click.Context:
    """Parse a command line with all subcommands like the program, without running it."""
    name, *arguments = words
    if name in COMMANDS:
        command: click.Command = getattr(importlib.import_module(f"tune_rescon.{name}"), name)
    else:
        group_command = group.get_command(click.Context(group), name)
        assert group_command is not None, f"no such command: {name}"
        command = group_command
    if isinstance(command, click.Group):
        subcommand = command.get_command(click.Context(command), arguments[0])
        assert subcommand is not None, f"no such command: {arguments[0]}"
        command, arguments = subcommand, arguments[1:]
    return command.make_context(name, [*arguments])


def test_command_lines_are_found_in_the_documentation() -> None:
    assert len(COMMAND_LINES) > 50
    assert len(list(command_lines(ROOT / "docs/tutorial.md"))) >= 10


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_each_command_line_is_accepted(words: list[str]) -> None:
    assert parse(words).command is not None


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``photos`` of two classes, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_RESCON_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.jpg")
    return tmp_path / "photos"


def test_the_tutorials_searches_pass_a_dry_run(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert photographs.is_dir()
    searches = [
        words
        for words in command_lines(ROOT / "docs/tutorial.md")
        if words[0] == "search" and "--resume" not in words
    ]
    assert len(searches) >= 3
    for words in searches:
        assert main([*words, *([] if "--dry-run" in words else ["--dry-run"]), "--plain"]) == 0, words
        output = capsys.readouterr().out
        assert "folder: found 2 classes; images: train" in output
    assert not (photographs.parent / "runs").exists(), "a dry run starts nothing"


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference/python.md").read_text(encoding="utf-8")
    names = importlib.import_module("tune_rescon").__all__
    assert [name for name in names if f"::: tune_rescon.{name}\n" not in page] == []
    commands = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    all_commands = group.list_commands(click.Context(group))
    assert [name for name in all_commands if f":command: {name}\n" not in commands] == []


def test_the_page_of_space_files_shows_the_shipped_spaces() -> None:
    page = (ROOT / "docs/howto/space-files.md").read_text(encoding="utf-8")
    _, *space = (ROOT / "search_spaces/att92.yaml").read_text(encoding="utf-8").splitlines()
    assert textwrap.indent("\n".join(space), "    ") in page
    spaces = {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert set(re.findall(r"^\| `(\w+)` \|", page.partition("## A whole one")[0], re.MULTILINE)) == spaces
