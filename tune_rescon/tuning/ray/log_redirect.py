"""What Ray, Optuna, MLflow and Lightning say goes to the search's log file, not between the user's lines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from typing_extensions import override

from tune_rescon.passwords import hide_passwords

__all__ = [
    "diverted",
    "library_log",
]


#: Loggers that bring a handler of their own to the terminal.
_LOUD: Final = ("ray", "optuna", "mlflow", "alembic", "pytorch_lightning", "lightning_fabric", "tune_rescon")

#: Standard output and error.
_STREAMS: Final = (1, 2)


class _Formatter(logging.Formatter):
    """Hides passwords, also in a traceback: the log is sent to the storage, and shown to others."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


@contextmanager
def library_log(path: Path) -> Iterator[None]:
    """Write the libraries' log records and Python's warnings to ``path`` for the time being."""
    import optuna

    optuna.logging.disable_default_handler()
    file = _LogFile(path, encoding="utf-8")
    file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, before = root.level, {name: _taken(name) for name in _LOUD}
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
    """Loses what the disk does not take: logging would print a traceback for each record."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def diverted(path: Path) -> Iterator[None]:
    """Append what is written to standard output and error to ``path`` for the time being.

    Not all noise passes a logger: Ray's C++ writes to descriptor 2 when a process of its own dies, and so may
    any library's, and what a driver's children inherit. Nothing in Python is between such a write and the
    terminal, so the descriptors themselves are turned; whoever has something to say to the person does that
    on a duplicate made before.

    What this costs: a crash in C++ says its last words in the log alone. An exception of ours does not: it
    leaves this block first, and is printed when the descriptors are back.
    """
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    _flush()
    before = {stream: os.dup(stream) for stream in _STREAMS}
    try:
        for stream in _STREAMS:
            os.dup2(log, stream)
        yield
    finally:
        # What waits in Python's buffers was said before this moment.
        _flush()
        for stream, original in before.items():
            os.dup2(original, stream)
            os.close(original)
        os.close(log)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A full disk, a pipe nobody reads: what is lost is noise, and the descriptors must come back.
        with suppress(OSError):
            stream.flush()


def _taken(name: str) -> tuple[list[logging.Handler], bool]:
    """Take a logger's own handlers away and let it speak through the root; what it had before."""
    logger = logging.getLogger(name)
    had = (list(logger.handlers), logger.propagate)
    logger.handlers.clear()
    logger.propagate = True
    return had
