"""Run a command, print its error messages and return its exit code, in the same way for every command."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click
from typing_extensions import override

from tune_rescon.errors import TuneResconError, UserError, format_error, presentable
from tune_rescon.paths import ensure_home

__all__ = ["INTERRUPTED", "print_line", "progress_shown", "run_command"]

#: The exit code of an interrupted command, as shells report it.
INTERRUPTED = 130

#: The error numbers of a write to a full disk, and of a write over the quota of a disk.
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def run_command(
    command: click.Command, argv: Sequence[str] | None, *, name: str, what: str, interrupted: str = ""
) -> int:
    """Run a command and return its exit code.

    The exit code is 0 if the command succeeded, 1 if it failed, 2 if the user's input is wrong, and 130 if
    the command was interrupted. If the reader of standard output closes the pipe (``| head``), it is 0, and
    no message is printed. If standard output is on a full disk, it is 1.

    Args:
        command: the command; it returns its exit code, or None for 0.
        argv: the command's arguments; None: the arguments of the process.
        name: the module that starts the command.
        what: the subject of the message if the command fails ("The search").
        interrupted: the message if the command is interrupted.
    """
    _open_closed_streams()
    _accept_undecodable_names()
    ensure_home()
    try:
        _check_working_directory()
        code = _invoke(command, argv, name)
        sys.stdout.flush()
    except click.ClickException as error:
        # The message quotes the user's input, which may contain a password.
        shown = io.StringIO()
        error.show(shown)
        _print_error(shown.getvalue().rstrip("\n"))
        return 2
    except UserError as error:
        _print_error(f"Error: {error}")
        return 2
    except TuneResconError as error:
        _print_error(f"{what} failed: {error}")
        return 1
    except (KeyboardInterrupt, click.Abort):
        _print_error(interrupted)
        return INTERRUPTED
    except (OSError, SystemExit) as error:
        if _reader_closed(error):
            # The reader needs no more output (`| head`), so this is no error.
            _discard_output()
            return 0
        if not isinstance(error, OSError) or error.errno not in _DISK_FULL:
            raise
        _discard_output()
        place = error.filename or "standard output or an output file"
        _print_error(
            f"{what} failed: cannot write to {place} ({error.strerror}). Free space there, and try again."
        )
        return 1
    return code


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line to standard output or, with ``err``, to standard error.

    Passwords and memory addresses are removed first (:func:`.presentable`).
    """
    click.echo(presentable(text), err=err)


@contextmanager
def progress_shown(show: Callable[[str], object]) -> Iterator[None]:
    """Pass the messages of the logger ``tune_rescon.progress`` to ``show`` within the block.

    They tell the user what a search does and why it waits. Outside of such a block, they are treated as other
    log records of level INFO.

    Args:
        show: called on the thread that logs the message; its exceptions are raised there.
    """
    logger, handler = logging.getLogger("tune_rescon.progress"), _ProgressHandler(show)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


class _ProgressHandler(logging.Handler):
    def __init__(self, show: Callable[[str], object]) -> None:
        super().__init__()
        self._show = show

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


def _invoke(command: click.Command, argv: Sequence[str] | None, name: str) -> int:
    # `command.main` would end the process with exit code 1 when a reader closes the pipe.
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with command.make_context(f"python -m {name}", arguments) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code


def _check_working_directory() -> None:
    """Check that the working directory exists, because nearly every command and library asks for it.

    Raises:
        UserError: it does not.
    """
    try:
        Path.cwd()
    except OSError as error:
        where, hint = "the working directory", "Change to another one, by `cd`."
        raise UserError(format_error("must exist", got=error.strerror, where=where, hint=hint)) from None


def _print_error(text: str) -> None:
    # Standard error may be closed or full as well. The exit code then reports the result alone.
    with suppress(OSError):
        if text:
            print_line(text, err=True)


def _open_closed_streams() -> None:
    """Open the null device in place of each standard stream that the caller closed (``>&-``).

    Otherwise the next file that the process opens gets the stream's descriptor, and libraries print into
    that file.
    """
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # `os.open` returns the lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)


def _accept_undecodable_names() -> None:
    """Let standard output print the names of files that are not UTF-8 unchanged, instead of raising."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="surrogateescape")


def _reader_closed(error: OSError | SystemExit) -> bool:
    """Return whether the reader of standard output has closed it.

    A BrokenPipeError alone does not show this, because another pipe may have broken.
    """
    if isinstance(error, SystemExit):
        # rich turns the BrokenPipeError of a closed output into a SystemExit.
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    with suppress(OSError, ValueError):
        output = select.poll()
        output.register(sys.stdout.fileno(), select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))
    return False


def _discard_output() -> None:
    """Redirect standard output to the null device, because Python flushes the rest of the output at exit."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
