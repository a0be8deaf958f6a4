"""Commands whose output cannot be written: a closed pipe, a full disk, a closed stream."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import click
import pytest

from tune_rescon.command import run_command

pytestmark = pytest.mark.timeout(60)  # each starts an interpreter

#: Prints lines by click or rich, and keeps an open file that must not get them.
PRINT_LINES = """
import sys
import click
from rich.console import Console
from tune_rescon.command import run_command

@click.command()
@click.argument("how")
def talk(how):
    file = open("file", "w")
    console = Console()
    # More than a pipe holds.
    for _ in range(2000):
        (click.echo if how == "click" else console.print)("a line" * 12)
    file.close()

sys.exit(run_command(talk, None, name="talk", what="The talk"))
"""

#: Prints on the console of a search.
PRINT_AS_SEARCH = """
import sys
from tune_rescon.command import run_command
import click
from tune_rescon.reporting import open_console

@click.command()
@click.argument("how")
def search(how):
    with open_console(plain=True) as console:
        for _ in range(2000):
            console.print("a line" * 12)
    click.echo("the search ended by itself", err=True)

sys.exit(run_command(search, None, name="search", what="The search"))
"""


def run(program: str, printer: str, cwd: Path, output: str) -> subprocess.CompletedProcess[bytes]:
    # With a shell, because subprocess cannot close a stream of a child.
    command = [sys.executable, "-c", program, printer]
    shell = '"$@" ' + output + '; exit "${PIPESTATUS[0]}"'
    command = ["bash", "-c", shell, "bash", *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, check=False)


@pytest.mark.parametrize("printer", ["click", "rich"])
@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("| head -1", 0, b""),
        (">&-", 0, b""),
        (
            "> /dev/full",
            1,
            b"The talk failed: cannot write to standard output or an output file (No space left",
        ),
    ],
)
def test_unwritable_output_gives_the_expected_exit_code(
    output: str, code: int, message: bytes, printer: str, tmp_path: Path
) -> None:
    process = run(PRINT_LINES, printer, tmp_path, output)
    assert (process.returncode, process.stderr[: len(message) or None]) == (code, message)
    assert b"Traceback" not in process.stderr
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("output", ["| head -1", ">&-", "> /dev/full"])
def test_a_search_continues_when_its_output_is_closed(output: str, tmp_path: Path) -> None:
    process = run(PRINT_AS_SEARCH, "", tmp_path, output)
    assert (process.returncode, process.stderr) == (0, b"the search ended by itself\n")


def test_an_unrelated_broken_pipe_error_is_raised() -> None:
    @click.command()
    def raise_broken_pipe() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        run_command(raise_broken_pipe, [], name="talk", what="The talk")


def test_a_report_into_a_closed_pipe_exits_quietly(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parent / "fixtures" / "old_search.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    command = f"{sys.executable} -m tune_rescon.report old --storage {tmp_path}"
    for form in ("", "--json", "--csv"):
        shell = f'{command} {form} | true; exit "${{PIPESTATUS[0]}}"'
        process = subprocess.run(["bash", "-c", shell], capture_output=True, check=False)
        assert (process.returncode, process.stderr) == (0, b"")
