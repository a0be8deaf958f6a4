"""The command in a pseudo-terminal: the table is drawn and resized, and the terminal is restored."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pyte
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.waiting import LONGEST_WAIT

pytestmark = pytest.mark.ray

#: The command with slow trials that train nothing. The session leader opens the terminal, which makes it the
#: controlling terminal, so that a typed Ctrl-C sends SIGINT.
DRIVER = """
import functools, os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
from tune_rescon import tuning

def learn(config):
    from tune_rescon.testing import trainables
    trainables.SLOW_EPOCH = 1.0
    trainables.learn_slowly(config)

tuning.run_search = functools.partial(tuning.run_search, trainable=learn)
from tune_rescon.search import main
sys.exit(main(sys.argv[1:]))
"""

#: Output of Ray: a C++ file with a line number, a log level, or a Python traceback.
RAY_OUTPUT = r"\.cc:\d+|WARNING|ERROR|Traceback"


class Terminal:
    """A pseudo-terminal that runs a program and emulates its screen."""

    def __init__(self, command: list[str], environment: dict[str, str], *, columns: int, lines: int) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self._screen)
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, condition: Callable[[str], bool]) -> str:
        """Wait until ``condition`` is true for the screen, and return the screen."""
        deadline = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < deadline:
            self._read(0.1)
            if condition(self.screen):
                return self.screen
            assert self.process.poll() is None, self.full_output
        raise AssertionError(self.full_output)

    def end(self) -> int:
        """Wait for the end of the program, read all output, and return the exit code."""
        deadline = time.monotonic() + LONGEST_WAIT
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        self._read(0.1)
        return self.process.wait(timeout=1)

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def full_output(self) -> str:
        """The scrollback and the screen."""
        rows = ("".join(row[x].data for x in range(self._screen.columns)) for row in self._screen.history.top)
        return "\n".join([*(row.rstrip() for row in rows), self.screen])

    @property
    def cursor_is_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    @property
    def current_settings(self) -> list[object]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, seconds: float) -> None:
        while select.select([self._master], [], [], seconds)[0]:
            self._stream.feed(os.read(self._master, 65536))
            seconds = 0.0


@pytest.fixture
def terminal(tmp_path: Path, short_tmp: Path, empty_store: Path) -> Iterator[Terminal]:
    """A search of digits, two trials at once, in a terminal of 100 x 24."""
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_store, tmp_path / "runs" / "mlflow.db")
    arguments = ["--space", "digits", "--name", "s", "--storage", str(tmp_path / "runs"), "--tensorboard"]
    environment = {
        **os.environ,
        "RAY_TMPDIR": str(short_tmp),
        "TUNE_RESCON_CACHE": str(tmp_path / "cache"),
        "TUNE_RESCON_DATA": str(tmp_path / "data"),
    }
    terminal = Terminal([sys.executable, "-c", DRIVER, *arguments], environment, columns=100, lines=24)
    yield terminal
    terminal.close()


def test_the_table_is_drawn_and_the_terminal_restored(terminal: Terminal, tmp_path: Path) -> None:
    # All in one condition: the screen may be half redrawn, and the best trial is known after an epoch.
    terminal.wait_for(
        lambda screen: (
            screen.count("/9  ") == 2
            and "Promoted" in screen
            and re.search(r"^s  +━+ +\d+ of 12 trials ended", screen, re.MULTILINE) is not None
            and re.search(r"Best +trial_", screen) is not None
        )
    )
    assert terminal.cursor_is_hidden

    terminal.resize(60, 12)
    # The rest of the larger screen does not count: it has only the last lines of the table.
    terminal.wait_for(
        lambda screen: (
            "parameters" not in screen.splitlines()[-7:]
            and "of 12 trials ended" in screen
            and "Used" in screen
        )
    )

    processes = psutil.Process(terminal.process.pid).children(recursive=True)
    before = {trial.number: len(trial.intermediate_values) for trial in running(tmp_path)}
    # The signal goes to the whole process group. Ray must finish its epochs.
    terminal.type(b"\x03")
    terminal.wait_for(lambda screen: "finishing the running epochs" in screen.replace("\n", ""))
    assert terminal.end() == 130, terminal.full_output
    assert "stopping now" not in terminal.full_output
    assert "Interrupted. Resume with: python -m" in terminal.full_output
    _, left = psutil.wait_procs(processes, timeout=45)
    assert [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    trials = study(tmp_path).trials
    assert len(before) == 2
    for number, epochs in before.items():
        assert len(trials[number].intermediate_values) > epochs
        assert trials[number].user_attrs["state"] in ("interrupted", "stopped")
    assert "Used" not in terminal.screen
    assert not terminal.cursor_is_hidden
    assert terminal.current_settings == terminal.settings
    # The TensorBoard files of both trials match the study.
    for number in (0, 1):
        files = EventAccumulator(
            str(tmp_path / "runs" / "s" / "tensorboard" / f"trial_{number:04d}")
        ).Reload()
        points = {point.step: point.value for point in files.Scalars("val_accuracy")}
        assert points == pytest.approx(trials[number].intermediate_values)


def study(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{folder}/runs/s/study.db")


def running(folder: Path) -> list[optuna.trial.FrozenTrial]:
    return study(folder).get_trials(states=(optuna.trial.TrialState.RUNNING,))


@pytest.mark.nightly
def test_output_of_a_dying_ray_goes_to_the_log(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait_for(lambda screen: screen.count("/9  ") == 2)
    children = psutil.Process(terminal.process.pid).children(recursive=True)
    (raylet,) = [process for process in children if process.name() == "raylet"]
    raylet.kill()
    assert terminal.end() == 1, terminal.full_output
    output = terminal.full_output
    assert "Ray must live as long as the search, but its node manager (raylet) has died" in output
    assert not re.search(RAY_OUTPUT, output), output
    folder = tmp_path / "runs" / "s"
    assert re.search(RAY_OUTPUT, (folder / "search.log").read_text())
    assert not terminal.cursor_is_hidden
    assert {trial.user_attrs["state"] for trial in study(tmp_path).trials} == {"interrupted"}
    assert (folder / "trials.csv").is_file()
    _, left = psutil.wait_procs(children, timeout=45)
    assert [process.name() for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
