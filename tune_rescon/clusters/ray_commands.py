"""The rules for the commands of a cluster file: each ``ray start``, and every other server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from tune_rescon.clusters.documents import Complain
from tune_rescon.clusters.shell import ShellCommand, commands_in, is_text_program
from tune_rescon.clusters.shell_words import ShellSyntaxError
from tune_rescon.errors import format_error

__all__ = [
    "HEAD_METRICS_OFF",
    "METRICS_OFF",
    "check_commands",
    "ray_starts",
]

#: The variables, and their values, with which Ray opens no port for metrics: those of every node, and those
#: of the head's autoscaler and dashboard. The latter have no switch, but cannot listen on port 65536.
METRICS_OFF: Final[Mapping[str, str]] = {"RAY_enable_metrics_collection": "0"}
HEAD_METRICS_OFF: Final[Mapping[str, str]] = {
    **METRICS_OFF,
    "AUTOSCALER_METRIC_PORT": "65536",
    "DASHBOARD_METRIC_PORT": "65536",
}

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

#: An option or variable that says where a server listens, and an address that is every interface.
_LISTENS: Final = re.compile(r"-{1,2}[\w-]*(?:host|bind|listen|addr|address|ip)", re.IGNORECASE)
_EVERYWHERE: Final = re.compile(r"(?:\w+://)?(?:0\.0\.0\.0|\[::\]|::|\*)(?::\d+)?/?")


def ray_starts(text: str) -> list[ShellCommand]:
    """Return each ``ray start`` of a text; an unreadable text has none.

    >>> [start.words for start in ray_starts("ulimit -n 9; RAY_AUTH_MODE=token ray start --head && echo up")]
    [('ray', 'start', '--head')]
    """
    try:
        return [start for command in commands_in(text) if (start := command.ray_start)]
    except ShellSyntaxError:
        return []


def check_commands(
    text: str, complain_on: Callable[[int], Complain], *, where: str, head: bool | None = None
) -> None:
    """Check each ``ray start`` of a text, and that no other server listens on all interfaces.

    Args:
        text: a command of a cluster file, or a whole script.
        complain_on: returns the function that adds a finding on a line of the text, counted from 1.
        where: the place of the text in the file.
        head: True if the text starts the head; None to look for ``--head``.
    """
    try:
        commands = commands_in(text)
    except ShellSyntaxError as error:
        rule = "must be a command that a shell can read"
        complain_on(1)("shell", format_error(rule, got=str(error), where=where), "error")
        return
    for command in commands:
        start = command.ray_start
        if start is None:
            _check_listening(command, complain_on(command.line), where=where)
        else:
            is_head = start.is_head if head is None else head
            _check_start(start, complain_on(command.line), where=where, head=is_head)


def _check_start(start: ShellCommand, complain: Complain, *, where: str, head: bool) -> None:
    mode = start.environment.get("RAY_AUTH_MODE")
    if mode != "token":
        rule = "every `ray start` must have `RAY_AUTH_MODE=token` before it"
        hint = "Without it anyone who reaches the node's ports can run code there."
        complain("auth-mode", format_error(rule, got=mode, where=where, hint=hint), "error")
    host = start.option("dashboard-host")
    if head and host not in _LOOPBACK:
        rule = "the head must be started with `--dashboard-host=127.0.0.1`"
        hint = "`python -m tune_rescon.cluster tunnel` shows it to you alone."
        complain("dashboard", format_error(rule, got=host or "none", where=where, hint=hint), "error")


def _check_listening(command: ShellCommand, complain: Complain, *, where: str) -> None:
    if is_text_program(command):
        return
    for index, word in enumerate(command.words):
        key, equals, value = word.partition("=")
        if not _LISTENS.fullmatch(key):
            continue
        if not equals:
            value = command.words[index + 1] if index + 1 < len(command.words) else ""
        if _EVERYWHERE.fullmatch(value):
            rule = "a server must listen on 127.0.0.1, to be reached by a tunnel"
            got = f"`{key}{'=' if equals else ' '}{value}`"
            complain("listens", format_error(rule, got=got, where=where), "error")
