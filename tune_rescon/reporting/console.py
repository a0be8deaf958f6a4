"""The console of the commands, which prints to the user even while standard output is redirected."""

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

from tune_rescon.errors import hide_passwords
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


#: Width of a line, in characters, where the output is not a terminal.
PIPE_WIDTH: Final = 250

#: The assumed size of a terminal that does not report its size, or has been closed.
DEFAULT_SIZE: Final = ConsoleDimensions(80, 25)

STDOUT: Final = 1

_LOGGER: Final = logging.getLogger(__name__)


@contextmanager
def open_console(*, plain: bool) -> Iterator[Console]:
    """Yield a console that writes to its own file descriptor.

    Standard output itself is redirected to the search's log while the trials run
    (:mod:`tune_rescon.tuning.ray.log_redirect`), so that output of Ray's C++ code does not appear among the
    user's lines.

    Args:
        plain: print no colours, and lines as wide as they need to be. Output that is not a terminal is always
            printed this way.
    """
    no_color = True if plain else None
    if not _is_real(STDOUT):
        # A test or a notebook in this process captures standard output.
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
    """Drops output that cannot be written, so that a closed pipe or a full disk does not end the search."""

    _lost = False

    @override
    def write(self, text: str) -> int:
        """Write ``text``, unless an earlier write has failed."""
        self._unless_failed(lambda: super(_LossyFile, self).write(text))
        return len(text)

    @override
    def flush(self) -> None:
        """Flush, unless an earlier write has failed."""
        self._unless_failed(super().flush)

    @override
    def close(self) -> None:
        """Close the file; unwritten output may be lost."""
        with suppress(OSError):
            super().close()

    def _unless_failed(self, call: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            call()
        except OSError as error:
            self._lost = True
            _LOGGER.info("standard output takes nothing any more: %s", error)


class _TerminalConsole(Console):
    """Gets the terminal's size from its own descriptor; rich uses standard input, output and error."""

    @property
    @override
    def size(self) -> ConsoleDimensions:
        """The current size in characters; a window may be resized. A closed terminal has the default size."""
        try:
            size = os.get_terminal_size(self.file.fileno())
        except OSError:
            return DEFAULT_SIZE
        return ConsoleDimensions(size.columns or DEFAULT_SIZE.width, size.lines or DEFAULT_SIZE.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError(f"a terminal's size is its own, not {new_size}")


def opening_line(space: Space, options: RunOptions) -> str:
    """Return a line that states what is about to start, and where its runs are recorded."""
    most = space.budget.concurrent
    workers = "as many workers as fit" if most is None else f"{most} worker{'s' if most > 1 else ''}"
    where = "Ray on this machine" if options.address is None else f"work on the Ray at {options.address}"
    return (
        f"{options.name}: preparing the data, then starting {where}, {workers}; MLflow at {_mlflow(options)}"
    )


def print_opening(space: Space, options: RunOptions, console: Console) -> None:
    """Print :func:`opening_line`, as one line on any terminal.

    Args:
        space: the space of the search.
        options: where the search runs and is stored.
        console: the console to print to.
    """
    console.print(hide_passwords(opening_line(space, options)), markup=False, soft_wrap=True)


def _mlflow(options: RunOptions) -> str:
    if options.tracking_uri is not None:
        return options.tracking_uri
    if isinstance(options.storage, StorageUrl):
        return f"{options.storage}/{options.name}"
    # The path of the file, not its URL: SQLAlchemy, which quotes URLs, takes long to import.
    return str(SearchFolder(storage=options.storage.resolve(), name=options.name).mlflow_db)
