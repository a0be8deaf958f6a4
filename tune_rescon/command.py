"""How every command ends: what it says, and its exit code."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import click

from tune_rescon.errors import TuneResconError, UserError, presentable
from tune_rescon.home import ensure_home

__all__ = ["INTERRUPTED", "print_line", "run_command"]

#: The exit code of a command that was interrupted, as shells give it.
INTERRUPTED = 130

#: What a write to a full disk, and to a full share of one, fails with.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def run_command(
    command: click.Command, argv: Sequence[str] | None, *, name: str, what: str, interrupted: str = ""
) -> int:
    """Run a command; its exit code: 0 done, 1 it failed, 2 something given is wrong, 130 interrupted.

    A reader that closes the pipe (``| head``) ends it quietly, with 0; a full disk under standard output ends
    it with a paragraph, and 1.

    Args:
        command: returns its exit code, or None for 0.
        argv: its arguments; None: the process's.
        name: the module it is started by.
        what: what has failed if it fails ("The search").
        interrupted: what to say if it is interrupted.
    """
    _open_closed_streams()
    ensure_home()
    try:
        code = _invoke(command, argv, name)
        sys.stdout.flush()
    except click.ClickException as error:
        # It quotes what was typed, which may hold a password.
        shown = io.StringIO()
        error.show(shown)
        _say(shown.getvalue().rstrip("\n"))
        return 2
    except UserError as error:
        _say(f"Error: {error}")
        return 2
    except TuneResconError as error:
        _say(f"{what} failed: {error}")
        return 1
    except (KeyboardInterrupt, click.Abort):
        _say(interrupted)
        return INTERRUPTED
    except (OSError, SystemExit) as error:
        if _reader_left(error):
            # It has seen enough (`| head`): to it, and to a shell, nothing is wrong.
            _drop_output()
            return 0
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            raise
        _drop_output()
        place = error.filename or "standard output, or a file that it writes,"
        _say(f"{what} failed: {place} takes no more ({error.strerror}). Free space there, and try again.")
        return 1
    return code


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line, as :func:`presentable`, to standard output or, with ``err``, to standard error."""
    click.echo(presentable(text), err=err)


def _invoke(command: click.Command, argv: Sequence[str] | None, name: str) -> int:
    # Not `command.main`, which ends the process with exit code 1 when a reader closes the pipe.
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with command.make_context(f"python -m {name}", arguments) as context:
            return int(command.invoke(context) or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code


def _say(text: str) -> None:
    # Standard error may be closed or full as well; the exit code says the rest.
    with suppress(OSError):
        if text:
            print_line(text, err=True)


def _open_closed_streams() -> None:
    """Open the null device as each standard stream that the caller closed (``>&-``).

    The next file that is opened would have its descriptor, and get what libraries print.
    """
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
            stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 - stays open
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)


def _reader_left(error: OSError | SystemExit) -> bool:
    """Whether what reads standard output has closed it; another pipe may have broken as well."""
    if isinstance(error, SystemExit):
        # What rich makes of it, once it has found that out.
        return isinstance(error.__context__, BrokenPipeError)
    if not isinstance(error, BrokenPipeError):
        return False
    with suppress(OSError, ValueError):
        output = select.poll()
        output.register(sys.stdout.fileno(), select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in output.poll(0))
    return False


def _drop_output() -> None:
    """Send what standard output still holds to the null device: Python flushes it when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
