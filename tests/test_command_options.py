"""Options that all commands share: environment variables, groups in the help, log records."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Iterator

import click
import pytest

from tune_rescon.__main__ import COMMANDS
from tune_rescon.__main__ import tune_rescon as group
from tune_rescon.command_options import OptionsCommand
from tune_rescon.search import main, search

#: Variables of this project that are not options of a single command.
GENERAL_VARIABLES = {
    *("TUNE_RESCON_STORAGE", "TUNE_RESCON_STUDY", "TUNE_RESCON_TRACKING_URI", "TUNE_RESCON_DATA"),
    *("TUNE_RESCON_CACHE", "TUNE_RESCON_GRACE_SECONDS", "TUNE_RESCON_LAB"),
    *("TUNE_RESCON_MLFLOW_DATABASE", "TUNE_RESCON_MLFLOW_FOLDER"),
}

#: Options of all commands.
LOG_FLAGS = {"-v", "-q", "--log-level"}

#: Options that several commands share, with one variable.
SHARED_OPTIONS = {"--storage", "--study", "--tracking-uri", "--data-root", "--database"}


def iter_commands() -> Iterator[click.Command]:
    for name in COMMANDS:
        command = getattr(importlib.import_module(f"tune_rescon.{name}"), name)
        yield from command.commands.values() if isinstance(command, click.Group) else [command]
    yield from group.commands.values()


each_command = pytest.mark.parametrize("command", [*iter_commands()], ids=lambda command: command.name)


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


@each_command
def test_each_option_has_an_environment_variable_named_in_the_help(command: click.Command) -> None:
    assert isinstance(command, OptionsCommand)
    own_options = [option for option in options(command) if option.opts[0] not in SHARED_OPTIONS]
    assert all(str(option.envvar).startswith("TUNE_RESCON_") for option in own_options)
    help_text = command.get_help(click.Context(command))
    assert "Each option is also an environment variable" in help_text
    for option in options(command):
        assert option.hidden or option.opts[0] in help_text
        if option.opts[0] in SHARED_OPTIONS:
            assert f"[envvar:{option.envvar}]" in "".join(help_text.split())


def test_no_environment_variable_has_two_meanings() -> None:
    own_options = [
        str(option.envvar)
        for command in iter_commands()
        for option in options(command)
        if option.opts[0] not in SHARED_OPTIONS
    ]
    assert len(own_options) == len(set(own_options)) > 60
    assert not GENERAL_VARIABLES & set(own_options)


@pytest.mark.parametrize(
    ("variable", "value", "parameter", "expected"),
    [
        ("TUNE_RESCON_SEARCH_TRIALS", "7", "trials", 7),
        ("TUNE_RESCON_SEARCH_SPACE", "digits", "space_name", "digits"),
        ("TUNE_RESCON_SEARCH_SET", "fidelity.max=9 name=x", "settings", ("fidelity.max=9", "name=x")),
        ("TUNE_RESCON_SEARCH_DRY_RUN", "1", "dry_run", True),
        ("TUNE_RESCON_SEARCH_DRY_RUN", "0", "dry_run", False),
        ("TUNE_RESCON_STORAGE", "/runs", "storage", "/runs"),
        ("TUNE_RESCON_DATA", "/data", "data_root", "/data"),
        ("TUNE_RESCON_TRAIN_TRIALS", "7", "trials", None),
    ],
)
def test_an_environment_variable_sets_its_option(
    variable: str, value: str, parameter: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert search.make_context("search", []).params[parameter] == expected


def test_the_command_line_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_RESCON_SEARCH_TRIALS", "7")
    assert search.make_context("search", ["--trials", "8"]).params["trials"] == 8


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TUNE_RESCON_SEARCH_HOUR", "TUNE_RESCON_SEARCH_HOURS"),
        ("TUNE_RESCON_SEARCH_DRYRUN", "TUNE_RESCON_SEARCH_DRY_RUN"),
        # These options have one variable for all commands.
        ("TUNE_RESCON_SEARCH_STORAGE", "TUNE_RESCON_STORAGE"),
        ("TUNE_RESCON_SEARCH_DATA_ROOT", "TUNE_RESCON_DATA"),
        # of a service named tune-rescon-search, from Kubernetes
        ("TUNE_RESCON_SEARCH_SERVICE_HOST", None),
        ("TUNE_RESCON_SEARCH_PORT_80_TCP", None),
        # of other commands
        ("TUNE_RESCON_TRAIN_SEED", None),
        ("TUNE_RESCON_STORAGE", None),
    ],
)
def test_a_misspelled_variable_is_named(
    variable: str, meant: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert main(["--space", "nosuch"]) == 2
    said = f"{variable} has no effect. Did you mean {meant}?\n" if meant else ""
    assert capsys.readouterr().err.startswith(f"{said}Error: unknown space 'nosuch'")


@each_command
def test_every_option_of_a_command_is_in_a_help_group(command: click.Command) -> None:
    assert isinstance(command, OptionsCommand)
    if not command.groups:
        return
    grouped = [flag for flags in command.groups.values() for flag in flags]
    own_names = [option.opts[0] for option in options(command)]
    assert sorted(grouped) == sorted(set(own_names) - LOG_FLAGS)


@click.command(cls=OptionsCommand)
@click.option("--plain", is_flag=True)
def log_messages(plain: bool) -> int:
    """Log a message of each level, and one of another library."""
    logger = logging.getLogger("tune_rescon.speak")
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)(f"{level} of postgresql://ann:s3cret@db")
    logging.getLogger("other").error("of another library")
    return int(plain)


@pytest.mark.parametrize(
    ("arguments", "levels", "plain"),
    [
        (["-v"], ["info", "warning", "error"], True),
        (["-vv"], ["debug", "info", "warning", "error"], True),
        (["-q"], ["error"], False),
        (["--log-level", "WARNING"], ["warning", "error"], True),
        (["--quiet", "--plain"], ["error"], True),
    ],
    ids=["-v", "-vv", "-q", "--log-level", "--quiet --plain"],
)
def test_verbosity_flags_select_the_log_records_printed(
    arguments: list[str], levels: list[str], plain: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (logging.getLogger("tune_rescon").level, list(logging.getLogger().handlers))
    with log_messages.make_context("speak", arguments) as context:
        assert log_messages.invoke(context) == int(plain)
    printed = [line for line in capfd.readouterr().err.splitlines() if "tune_rescon.speak" in line]
    assert [line.split("tune_rescon.speak: ")[1].split()[0] for line in printed] == levels
    assert all("***" in line and "s3cret" not in line for line in printed)
    assert (logging.getLogger("tune_rescon").level, list(logging.getLogger().handlers)) == before


def test_verbose_and_quiet_cannot_be_combined() -> None:
    with (
        log_messages.make_context("speak", ["-v", "-q"]) as context,
        pytest.raises(click.UsageError, match="one of -v"),
    ):
        log_messages.invoke(context)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_shared_option_is_defined_once(name: str) -> None:
    source = inspect.getsource(importlib.import_module(f"tune_rescon.{name}"))
    shared = ("storage", "study", "tracking-uri", "data-root", "address", "plain", "set")
    assert re.findall(rf'click\.option\(\s*"--({"|".join(shared)})"', source) == []
