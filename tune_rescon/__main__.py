"""``tune-rescon COMMAND``, which is ``python -m tune_rescon.COMMAND``; also ``python -m tune_rescon``.

A command's module is imported only when it runs, or when a shell completes its options.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from tune_rescon import __version__
from tune_rescon.command import print_line, run_command
from tune_rescon.command_options import HELP_SETTINGS, OptionsCommand
from tune_rescon.errors import StorageError, format_error

__all__ = ["main"]

#: The commands and their one-line help, in the order in which a person needs them.
COMMANDS: Final = {
    "search": "Search for the best network.",
    "report": "Show a search, compare searches, and write the report page.",
    "enqueue": "Add a trial of chosen values to a search.",
    "stop": "Stop a trial of a search.",
    "train": "Train the best networks of a search in full, and evaluate them on the test images.",
    "predict": "Classify pictures.",
    "export": "Write a trained network for other tools.",
    "reproduce": "Train the networks of the papers' tables.",
    "cluster": "Start, watch and end a Ray cluster.",
}

#: The program's name, and the variable in which a shell asks it for completions.
_PROGRAM: Final = "tune-rescon"
_COMPLETION: Final = "_TUNE_RESCON_COMPLETE"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS and _COMPLETION not in os.environ:
        module = importlib.import_module(f"tune_rescon.{arguments[0]}")
        code: int = module.main(arguments[1:])
        return code
    if _COMPLETION in os.environ:
        # Click answers the shell and ends the process.
        tune_rescon.main(arguments, prog_name=_PROGRAM)
    return run_command(tune_rescon, arguments, name="tune_rescon", what="The command")


class _Commands(click.Group):
    """The commands; each one is imported when it is looked up."""

    command_class = OptionsCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order."""
        del ctx
        return [*COMMANDS, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a name; None if it does not exist."""
        if cmd_name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"tune_rescon.{cmd_name}"), cmd_name)
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        del ctx
        own = {name: command.get_short_help_str(80) for name, command in sorted(self.commands.items())}
        with formatter.section("Commands"):
            formatter.write_dl(list((COMMANDS | own).items()))


@click.group(cls=_Commands, context_settings=HELP_SETTINGS)
@click.version_option(__version__, prog_name=_PROGRAM)
def tune_rescon() -> None:
    """Search for the Residual Attention Network that classifies your images best within a budget.

    `tune-rescon COMMAND --help` shows the options of a command.
    """


@tune_rescon.command()
def spaces() -> None:
    """List the search spaces that come with the package."""
    from rich.console import Console
    from rich.table import Table

    from tune_rescon.spaces import list_spaces, load_space

    table = Table("space", "images", "searches", "trials", "epochs")
    for name in list_spaces():
        settings = ["dataset.path=images"] if name == "folder" else []
        space = load_space(name, settings)
        table.add_row(
            name,
            space.dataset.name,
            ", ".join(space.parameters),
            str(space.budget.trials),
            f"{space.fidelity.min} to {space.fidelity.max}",
        )
    Console().print(table)


@tune_rescon.command(groups={"What the file has": ["--from"]})
@click.argument("name", metavar="NAME")
@click.option(
    "--from",
    "base",
    default="folder",
    show_default=True,
    metavar="SPACE",
    help="The shipped space to begin with.",
)
def init(name: str, base: str) -> None:
    """Write NAME.yaml, a space file with a line for every field and its meaning."""
    from tune_rescon.spaces.json_schema import space_template
    from tune_rescon.storage import check_name

    name = name.removesuffix(".yaml")
    check_name(name, where="NAME")
    path = Path(f"{name}.yaml")
    text = space_template(name, base=base)
    try:
        # Mode "x" fails if the file exists.
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        hint = "Choose another NAME, or move the file away."
        raise StorageError(
            format_error("must not exist yet", got="a file", where=str(path), hint=hint)
        ) from None
    except OSError as error:
        rule = "must be a file that can be written"
        raise StorageError(format_error(rule, got=error.strerror or "", where=str(path))) from None
    print_line(f"Wrote {path}. See what it would search: tune-rescon search --space {path} --dry-run")


@tune_rescon.command()
def presets() -> None:
    """List the networks that have a name, with their parameters and multiply-adds."""
    from rich.console import Console
    from rich.table import Table

    from tune_rescon.config import TrialConfig
    from tune_rescon.models import count_params_and_macs, list_presets, resolve_network

    table = Table("preset", "image size", "params M", "GMACs")
    for name in list_presets():
        spec = resolve_network(TrialConfig(preset=name), classes=10, in_channels=3)
        cost = count_params_and_macs(spec)
        table.add_row(name, str(spec.image_size), f"{cost.parameters / 1e6:.2f}", f"{cost.macs / 1e9:.3f}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
