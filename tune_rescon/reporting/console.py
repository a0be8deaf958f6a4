"""Where the commands print: the person's terminal or pipe, whatever else standard output is used for."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Console, ConsoleDimensions
from typing_extensions import override

from tune_rescon.passwords import hide_passwords
from tune_rescon.spaces import Space
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning.folder import SearchFolder
from tune_rescon.tuning.options import RunOptions

__all__ = [
    "PIPE_WIDTH",
    "open_console",
    "opening_line",
    "print_opening",
]


#: Characters of a line where the output is no terminal.
PIPE_WIDTH: Final = 250

#: A terminal that does not say how large it is.
DEFAULT_SIZE: Final = ConsoleDimensions(80, 25)

STDOUT: Final = 1

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def open_console(*, plain: bool) -> Iterator[Console]:
    """A console on a descriptor of its own.

    Standard output itself goes to the search's log while the trials run
    (:func:`tune_rescon.tuning.ray.log_redirect.diverted`), so that what Ray's C++ writes there does not go
    through the person's lines.

    Args:
        plain: no colours, and lines as wide as they need to be; so it is too where there is no terminal.
    """
    no_color = True if plain else None
    if not _is_real(STDOUT):
        # Somebody in this process reads what is printed: a test, a notebook.
        yield Console(no_color=no_color, highlight=False, width=PIPE_WIDTH)
        return
    raw = os.fdopen(os.dup(STDOUT), "wb")
    with _LossyFile(raw, encoding=sys.stdout.encoding, errors="replace") as file:
        if file.isatty() and not plain:
            yield _TerminalConsole(file=file, highlight=False)
        else:
            yield Console(file=file, no_color=no_color, highlight=False, width=PIPE_WIDTH)


def _is_real(descriptor: int) -> bool:
    try:
        return sys.stdout.fileno() == descriptor
    except (AttributeError, OSError):  # io.UnsupportedOperation is one of these
        return False


class _LossyFile(io.TextIOWrapper):
    """Loses what it cannot write: a search does not end because its reader did, or because a disk is full."""

    _lost = False

    @override
    def write(self, text: str) -> int:
        """Write ``text``, unless an earlier write has failed."""
        self._unless_lost(lambda: super(_LossyFile, self).write(text))
        return len(text)

    @override
    def flush(self) -> None:
        """Flush, likewise."""
        self._unless_lost(super().flush)

    @override
    def close(self) -> None:
        """Close; what is left to write may be lost."""
        with suppress(OSError):
            super().close()

    def _unless_lost(self, call: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            call()
        except OSError as error:
            self._lost = True
            _LOGGER.info("standard output takes nothing any more: %s", error)


class _TerminalConsole(Console):
    """Asks its own descriptor how large the terminal is: rich asks standard input, output and error."""

    @property
    @override
    def size(self) -> ConsoleDimensions:
        """Characters, now: a window may be resized."""
        size = os.get_terminal_size(self.file.fileno())
        return ConsoleDimensions(size.columns or DEFAULT_SIZE.width, size.lines or DEFAULT_SIZE.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError(f"a terminal's size is its own, not {new_size}")


def opening_line(space: Space, options: RunOptions) -> str:
    """What is about to be started, and where its runs go."""
    most = space.budget.concurrent
    workers = "as many workers as fit" if most is None else f"{most} worker{'s' if most > 1 else ''}"
    where = "a Ray on this machine" if options.address is None else f"work on the Ray at {options.address}"
    return (
        f"{options.name}: preparing the data, then starting {where}, {workers}; MLflow at {_mlflow(options)}"
    )


def print_opening(space: Space, options: RunOptions, console: Console) -> None:
    """Print :func:`opening_line`, as one line on any terminal."""
    console.print(hide_passwords(opening_line(space, options)), markup=False, soft_wrap=True)


def _mlflow(options: RunOptions) -> str:
    if options.tracking_uri is not None:
        return options.tracking_uri
    if isinstance(options.storage, StorageUrl):
        return f"{options.storage}/{options.name}"
    # The file, not its URL: SQLAlchemy, which quotes URLs, takes long to import.
    return str(SearchFolder(storage=options.storage.resolve(), name=options.name).mlflow_db)
