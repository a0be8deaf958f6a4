"""``python -m tune_rescon.enqueue``: add a trial of chosen values to a search.

Exit: 0 done; 2 unknown search, or values that are not in its space; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tune_rescon.command import print_line, run_command
from tune_rescon.command_options import OptionsCommand, set_option, storage_option, study_option
from tune_rescon.config import trial_name

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(enqueue, argv, name="tune_rescon.enqueue", what="The command")


@click.command(
    cls=OptionsCommand,
    groups={"The trial": ["--set"], "Where the search is": ["--storage", "--study"]},
)
@click.argument("name", metavar="NAME")
@set_option("A parameter's value; the search draws the others. May be repeated.")
@storage_option
@study_option("The study's database, if the search was started with --study.")
def enqueue(name: str, settings: tuple[str, ...], storage: str | None, study: str | None) -> int:
    """Add a trial to the search NAME, which runs it among its next trials."""
    from tune_rescon.tuning import SearchLocation, enqueue_trial, resolve_storage

    location = SearchLocation(storage=resolve_storage(storage), study_url=study)
    number, values = enqueue_trial(location, name, settings)
    shown = " ".join(f"{key}={value}" for key, value in values.items())
    print_line(
        f"{trial_name(number)} waits: {shown}. {name} runs it among its next trials, or when it is resumed"
        " with a larger --trials."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
