"""Redirect the output of Ray, Optuna, MLflow and Lightning from the terminal to the search's log file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from typing_extensions import override

from tune_rescon.errors import HidingFormatter

__all__ = ["library_log", "redirected_output"]


#: Loggers that have their own handler for the terminal.
_TERMINAL_LOGGERS: Final = (
    "ray",
    "optuna",
    "mlflow",
    "alembic",
    "pytorch_lightning",
    "lightning_fabric",
    "tune_rescon",
)

#: Standard output and error.
_STREAMS: Final = (1, 2)


@contextmanager
def library_log(path: Path) -> Iterator[None]:
    """Write the libraries' log records and Python's warnings to ``path`` within the block."""
    import optuna

    optuna.logging.disable_default_handler()
    file = _LogFile(path, encoding="utf-8")
    # The log is sent to the storage and shown to others.
    file.setFormatter(HidingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, before = root.level, {name: _without_handlers(name) for name in _TERMINAL_LOGGERS}
    root.addHandler(file)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        root.removeHandler(file)
        with suppress(OSError):
            file.close()
        for name, (handlers, propagates) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:] = handlers
            logger.propagate = propagates


class _LogFile(logging.FileHandler):
    """Drops records that cannot be written to disk, because logging would print a traceback for each."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def redirected_output(path: Path) -> Iterator[None]:
    """Append standard output and standard error to ``path`` within the block.

    Some output does not pass a logger. Ray's C++ code writes to descriptor 2 when one of Ray's processes
    dies. The C++ code of any library and the driver's child processes, which inherit the descriptors, may do
    so as well. Python cannot intercept such a write, so the descriptors themselves are redirected. Messages
    to the user must be written to a duplicate of a descriptor that was made before.

    A disadvantage is that the last messages of a crash in C++ are in the log only. An exception in Python is
    still printed, because it leaves this block first and the descriptors are then restored.
    """
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    _flush()
    before = {stream: os.dup(stream) for stream in _STREAMS}
    try:
        for stream in _STREAMS:
            os.dup2(log, stream)
        yield
    finally:
        # The text in Python's buffers was written within the block, so it belongs to the log.
        _flush()
        for stream, original in before.items():
            os.dup2(original, stream)
            os.close(original)
        os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The disk may be full or the pipe's reader gone. Only unimportant output is lost, and the descriptors
        # must be restored.
        with suppress(OSError):
            stream.flush()


def _without_handlers(name: str) -> tuple[list[logging.Handler], bool]:
    """Remove a logger's handlers and make it propagate to the root logger.

    Returns:
        The logger's handlers and its ``propagate`` flag before the call.
    """
    logger = logging.getLogger(name)
    had = (list(logger.handlers), logger.propagate)
    logger.handlers.clear()
    logger.propagate = True
    return had
