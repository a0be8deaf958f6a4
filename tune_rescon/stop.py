"""``python -m tune_rescon.stop``: stop trials of a search, also while it runs.

Exit: 0 done; 2 unknown search or trial, or a trial that has ended; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from tune_rescon.command import print_line, run_command
from tune_rescon.command_options import OptionsCommand, storage_option, study_option
from tune_rescon.config import trial_name

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(stop, argv, name="tune_rescon.stop", what="The command")


@click.command(
    cls=OptionsCommand,
    groups={"Which trials": ["--trial"], "Where the search is": ["--storage", "--study"]},
)
@click.argument("name", metavar="NAME")
@click.option(
    "--trial",
    "numbers",
    type=click.IntRange(0),
    multiple=True,
    required=True,
    metavar="N",
    help="A trial that has not ended; may be repeated.",
)
@storage_option
@study_option("The study's database, if the search was started with --study.")
def stop(name: str, numbers: tuple[int, ...], storage: str | None, study: str | None) -> int:
    """Stop trials of the search NAME after their current epoch.

    A stopped trial keeps its epochs and is not resumed. The search continues with other trials.
    """
    from tune_rescon.tuning import SearchLocation, resolve_storage, stop_trials

    location = SearchLocation(storage=resolve_storage(storage), study_url=study)
    chosen = sorted(set(numbers))
    stop_trials(location, name, chosen)
    shown = ", ".join(trial_name(number) for number in chosen)
    print_line(f"{name} stops {shown} after the current epoch, or instead of resuming it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
