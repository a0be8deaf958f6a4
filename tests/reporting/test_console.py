"""The console on a terminal of any size, on a pipe and in a test, and the first line printed to it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import LONGEST_WAIT
from tune_rescon.reporting import open_console
from tune_rescon.reporting.terminal import PIPE_WIDTH, opening_line
from tune_rescon.spaces import load_space
from tune_rescon.storage import parse_storage
from tune_rescon.tuning import RunOptions

#: Standard output is a terminal or a pipe, and is redirected while a console is open; other streams are no
#: terminal. Opens a console for each case: whether it is plain, and the environment variables.
PROGRAM = """
import json, os, sys
from tune_rescon.reporting import open_console
before, stdout = dict(os.environ), os.dup(1)
for plain, variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    with open_console(plain=plain) as console:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        console.print(console.width, console.height, console.is_interactive, console.no_color)
    os.dup2(stdout, 1)
    os.environ.clear()
    os.environ.update(before)
"""

Case = tuple[bool, dict[str, str]]

#: The environment without the variables that configure the output of this test run.
OUTPUT_VARIABLES = (
    *("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"),
    *("LINES", "COLUMNS"),
)
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OUTPUT_VARIABLES}


def run(cases: list[Case], stdout: int) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        env={**ENVIRONMENT, "TERM": "xterm"},
        check=True,
        timeout=LONGEST_WAIT,
    )


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    controller, terminal_fd = pty.openpty()
    yield controller, terminal_fd
    os.close(controller)
    os.close(terminal_fd)


@pytest.mark.timeout(30)  # an interpreter each
@pytest.mark.parametrize(
    ("columns", "lines", "cases", "printed"),
    [
        (
            61,
            13,
            [(False, {}), (False, {"NO_COLOR": "1"}), (True, {})],
            [b"61 13 True False", b"61 13 True True", f"{PIPE_WIDTH} ".encode()],
        ),
        (0, 0, [(False, {})], [b"80 25 True False"]),
    ],
    ids=["terminal, NO_COLOR, --plain", "terminal without a size"],
)
def test_the_console_has_the_terminals_size(
    columns: int, lines: int, cases: list[Case], printed: list[bytes], terminal: tuple[int, int]
) -> None:
    controller, terminal_fd = terminal
    fcntl.ioctl(controller, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    run(cases, stdout=terminal_fd)
    with open(controller, "rb", closefd=False) as screen:
        for start in printed:
            assert screen.readline().startswith(start)


@pytest.mark.timeout(30)
def test_a_pipe_gets_long_lines_and_is_not_interactive() -> None:
    reading, writing = os.pipe()
    run([(False, {}), (False, {"FORCE_COLOR": "1"}), (False, {"TTY_INTERACTIVE": "1"})], stdout=writing)
    os.close(writing)
    printed = b"".join(iter(lambda: os.read(reading, 1000), b""))
    os.close(reading)
    # Rich colours the words where FORCE_COLOR asks for it.
    lines = re.sub(rb"\x1b\[[0-9;]*m", b"", printed).splitlines()
    assert [line.split()[:3] for line in lines] == [[str(PIPE_WIDTH).encode(), b"25", b"False"]] * 3


#: Draws a table; its terminal is closed after the first line, once standard input ends.
DRAWS_TABLE = """
import sys
from rich.live import Live
from tune_rescon.reporting import open_console
with open_console(plain=False) as console:
    with Live("a table", console=console, auto_refresh=False, transient=True) as table:
        console.print("ready")
        sys.stdin.read()
        table.update("another table", refresh=True)
        console.print("a line")
    console.print("the result")
"""


@pytest.mark.timeout(60)  # an interpreter
def test_drawing_continues_after_the_terminal_is_closed() -> None:
    controller, terminal_fd = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWS_TABLE],
        stdin=subprocess.PIPE,
        stdout=terminal_fd,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "TERM": "xterm"},
    )
    os.close(terminal_fd)
    printed = b""
    while b"ready\r\n" not in printed:
        printed += os.read(controller, 1000)
    os.close(controller)
    _, errors = process.communicate(timeout=50)
    assert (process.returncode, errors) == (0, b"")


def test_a_replaced_standard_output_gets_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    with open_console(plain=True) as console:
        console.print("a line")
    assert capsys.readouterr().out == "a line\n"


@pytest.mark.parametrize(
    ("overrides", "options", "expected"),
    [
        (
            [],
            RunOptions(name="s", storage=Path("/r")),
            "s: preparing the data, then starting Ray on this machine, 2 workers; MLflow at /r/mlflow.db",
        ),
        (
            ["budget.concurrent=1"],
            RunOptions(name="s", storage=Path("/r"), tracking_uri="http://m:5000"),
            "s: preparing the data, then starting Ray on this machine, 1 worker; MLflow at http://m:5000",
        ),
        (
            ["budget.concurrent=null"],
            RunOptions(name="s", storage=parse_storage("s3://b/r"), address="auto"),
            "s: preparing the data, then starting work on the Ray at auto, as many workers as fit; MLflow at s3://b/r/s",
        ),
    ],
    ids=["this machine", "MLflow server", "cluster and S3"],
)
def test_the_first_line_has_the_search_and_its_folder(
    overrides: list[str], options: RunOptions, expected: str
) -> None:
    assert opening_line(load_space("digits", overrides), options) == expected


def test_the_line_of_a_warning_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    line = "own.py:100: UserWarning: own.py:1234: [b] is not used"
    with open_console(plain=True) as console:
        console.print(line, markup=False)
    assert capsys.readouterr().out == f"{line}\n"
