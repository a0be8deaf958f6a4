"""Processes that are forks of one process in which the package's training is imported.

The import of torch and Lightning takes longer than what the tests do in such a process. The first use starts
the process that is forked, which ends with the process that runs the tests.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["PROCESSES", "run_forked", "run_script"]

PROCESSES: Final = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.training.preloaded"])


def run_forked(function: Callable[..., object], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Call a function of a module in a fork; return the exit status and what the process wrote.

    The status is that of a program that calls the function, and the negative number of a signal.

    Args:
        function: The function. It must be picklable, and so must its arguments.
        arguments: Its arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, errors = (Path(folder) / name for name in ("output", "errors"))
        process = PROCESSES.Process(
            target=_call, args=(function, arguments, str(output), str(errors)), daemon=True
        )
        process.start()
        try:
            process.join()
        finally:  # also if the test has reached its time limit
            process.kill()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(
            [function.__name__, *map(str, arguments)],
            process.exitcode,
            output.read_text(),
            errors.read_text(),
        )


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fork, as ``python -c SCRIPT ARGUMENTS`` does in a new process."""
    return run_forked(_execute, script, *arguments)


def _call(function: Callable[..., object], arguments: tuple[object, ...], output: str, errors: str) -> None:
    for descriptor, path in ((1, output), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    function(*arguments)


def _execute(script: str, *arguments: str) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})
