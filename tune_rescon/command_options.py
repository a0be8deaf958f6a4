"""The options that commands share, groups of options in ``--help``, environment variables, log records."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, TextIO, TypeVar

import click
from click.core import ParameterSource
from typing_extensions import override

from tune_rescon.errors import HidingFormatter

__all__ = [
    "HELP_SETTINGS",
    "OptionsCommand",
    "address_option",
    "data_root_option",
    "ordered_changes",
    "plain_option",
    "set_option",
    "storage_option",
    "study_option",
    "tracking_uri_option",
    "variable_of",
]

#: The help of every command.
HELP_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_Function = TypeVar("_Function", bound=Callable[..., Any])

storage_option: Final = click.option(
    "--storage",
    envvar="TUNE_RESCON_STORAGE",
    show_envvar=True,
    metavar="DIR|URL",
    help="Where searches are kept, also s3://... [default: ./runs].",
)
tracking_uri_option: Final = click.option(
    "--tracking-uri",
    envvar="TUNE_RESCON_TRACKING_URI",
    show_envvar=True,
    metavar="URI",
    help="MLflow [default: SQLite in the storage].",
)
data_root_option: Final = click.option(
    "--data-root",
    envvar="TUNE_RESCON_DATA",
    show_envvar=True,
    metavar="DIR",
    help="Where datasets are or are downloaded to [default: ./data].",
)


def _given(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Return the value of an option; None if it is empty, as that of an empty environment variable."""
    return value or None


address_option: Final = click.option(
    "--address",
    metavar="ADDR",
    callback=_given,
    help="A Ray cluster, or `auto` [default: this machine].",
)
plain_option: Final = click.option("--plain", is_flag=True, help="One line per event, no colours.")


def study_option(help_text: str) -> Callable[[_Function], _Function]:
    """Return ``--study`` with the help of a command."""
    return click.option(
        "--study",
        envvar="TUNE_RESCON_STUDY",
        show_envvar=True,
        metavar="URL",
        callback=_given,
        help=help_text,
    )


def set_option(help_text: str) -> Callable[[_Function], _Function]:
    """Return ``--set``, the parameter ``settings``, with the help of a command."""
    return click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help=help_text)


def ordered_changes(changes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the changes that the running command's options make to a space file, the last of which counts.

    Those of variables come first, because an option on the command line counts before any variable. A
    default changes nothing.

    Args:
        changes: the changes ``KEY=VALUE`` of each option, by the name of the option's parameter.
    """
    context = click.get_current_context()
    return [
        change
        for way in (ParameterSource.ENVIRONMENT, ParameterSource.COMMANDLINE)
        for name, values in changes.items()
        if context.get_parameter_source(name) is way
        for change in values
    ]


def variable_of(option: click.Option, *commands: str) -> str:
    """Return the environment variable of an option.

    >>> variable_of(click.Option(["--dry-run"], is_flag=True), "search")
    'TUNE_RESCON_SEARCH_DRY_RUN'
    """
    flag = max(option.opts, key=len).lstrip("-")
    return "_".join(["TUNE_RESCON", *commands, flag]).replace("-", "_").upper()


class OptionsCommand(click.Command):
    """A command with options in groups. Each option is also an environment variable.

    A variable is named after the flag, not after the function's parameter as Click does. The variable of a
    shared option does not have the command's name.
    """

    #: The commands above this one, ``("cluster",)`` for the subcommands of ``cluster``.
    above: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, name: str | None, *, groups: Mapping[str, Sequence[str]] | None = None, **attrs: Any
    ) -> None:
        """Take click's arguments, and ``groups``: the flags below each heading of the help."""
        super().__init__(name, **{"context_settings": HELP_SETTINGS, **attrs})
        self.groups = groups or {}
        self.params += [click.Option(names, **settings) for names, settings in _LOG_OPTIONS]
        options = [param for param in self.params if isinstance(param, click.Option)]
        own = [option for option in options if option.envvar is None]
        for option in own:
            option.envvar = variable_of(option, *self.above, name or "")
        flag = max(own[0].opts, key=len)
        self.epilog = f"Each option is also an environment variable, {own[0].envvar} for {flag}."

    @override
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below the headings of their groups."""
        lines = {
            flag: line
            for param in self.get_params(ctx)
            if isinstance(param, click.Option) and (line := param.get_help_record(ctx))
            for flag in param.opts[:1]
        }
        for heading, flags in self.groups.items():
            with formatter.section(heading):
                formatter.write_dl([lines.pop(flag) for flag in flags])
        with formatter.section("Other options" if self.groups else "Options"):
            formatter.write_dl([*lines.values()])

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with log records on standard error if they were requested."""
        self._warn_of_unknown_variables()
        given = {name: ctx.params.pop(name) for name in ("verbose", "quiet", "log_level")}
        level = _log_level(**given)
        if level is not None and level < logging.ERROR and "plain" in ctx.params:
            # Records would be printed into the live display.
            ctx.params["plain"] = True
        with _records_on_stderr(level):
            return super().invoke(ctx)

    def _warn_of_unknown_variables(self) -> None:
        """Print each variable that is set and has nearly the name of an option of this command.

        Other names are left alone: Kubernetes makes variables from the names of services.
        """
        commands = (*self.above, self.name or "")
        options = [param for param in self.params if isinstance(param, click.Option)]
        known = {variable_of(option, *commands): str(option.envvar) for option in options}
        prefix = "_".join(("TUNE_RESCON", *commands, "")).replace("-", "_").upper()
        ends = {name.removeprefix(prefix): variable for name, variable in known.items()}
        for name in sorted(set(os.environ) - set(known.values())):
            end = name.removeprefix(prefix)
            if name != end and (near := difflib.get_close_matches(end, ends, n=1, cutoff=0.75)):
                click.echo(f"{name} has no effect. Did you mean {ends[near[0]]}?", err=True)


_LEVELS: Final = ("debug", "info", "warning", "error")

_LOG_OPTIONS: Final[Sequence[tuple[Sequence[str], Mapping[str, Any]]]] = (
    (["-v", "--verbose"], {"count": True, "help": "Print log records, with --plain; -vv: more of them."}),
    (["-q", "--quiet"], {"is_flag": True, "help": "Print only log records that are errors."}),
    (
        ["--log-level"],
        {
            "type": click.Choice(_LEVELS, case_sensitive=False),
            "metavar": "LEVEL",
            "help": "Print log records of debug, info, warning or error and above.",
        },
    ),
)


def _log_level(*, verbose: int, quiet: bool, log_level: str | None) -> int | None:
    """Return the level of log records to print; None if nothing was requested."""
    if sum([bool(verbose), quiet, log_level is not None]) > 1:
        raise click.UsageError("Give one of -v, -q and --log-level.")
    if log_level is not None:
        return int(logging.getLevelNamesMapping()[log_level.upper()])
    return logging.ERROR if quiet else {0: None, 1: logging.INFO}.get(verbose, logging.DEBUG)


@contextmanager
def _records_on_stderr(level: int | None) -> Iterator[None]:
    """Print this package's log records of at least ``level`` to standard error within the block.

    The handler is at the root logger, because a search removes the handlers of the package's logger. It
    writes to a duplicate of the descriptor, because a search redirects standard error to its log.
    """
    if level is None:
        yield
        return
    stream: TextIO
    try:
        stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="backslashreplace")
    except OSError:  # a replaced standard error without a descriptor
        stream = sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    handler.addFilter(logging.Filter("tune_rescon"))
    handler.setFormatter(HidingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("tune_rescon")
    before = package.level
    # Not above INFO, because a search's log has all records from INFO on.
    package.setLevel(min(level, logging.INFO))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        package.setLevel(before)
        if stream is not sys.stderr:
            stream.close()
