"""How every command ends: what it says, and its exit code."""

from __future__ import annotations

import io
from collections.abc import Sequence

import click

from tune_rescon.errors import TuneResconError, UserError
from tune_rescon.passwords import hide_passwords

__all__ = ["INTERRUPTED", "run_command"]

#: The exit code of a command that was interrupted, as shells give it.
INTERRUPTED = 130


def run_command(
    command: click.Command, argv: Sequence[str] | None, *, name: str, what: str, interrupted: str = ""
) -> int:
    """Run a command; its exit code: 0 done, 1 it failed, 2 something given is wrong, 130 interrupted.

    Args:
        command: returns its exit code, or None for 0.
        argv: its arguments; None: the process's.
        name: the module it is started by.
        what: what has failed if it fails ("The search").
        interrupted: what to say if it is interrupted.
    """
    try:
        return int(command.main(args=argv, prog_name=f"python -m {name}", standalone_mode=False) or 0)
    except click.ClickException as error:
        # It quotes what was typed, which may hold a password.
        shown = io.StringIO()
        error.show(shown)
        click.echo(hide_passwords(shown.getvalue()), err=True, nl=False)
        return 2
    except UserError as error:
        click.echo(f"Error: {hide_passwords(str(error))}", err=True)
        return 2
    except TuneResconError as error:
        click.echo(f"{what} failed: {hide_passwords(str(error))}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort):
        if interrupted:
            click.echo(interrupted, err=True)
        return INTERRUPTED
