"""What the commands of a cluster file say: who listens where, the token mode, where searches are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from tune_rescon.errors import StorageError, explain
from tune_rescon.launching.findings import Severity
from tune_rescon.storage import parse_storage

__all__ = ["Complain", "check_listening", "check_ray_starts", "check_storage", "option", "ray_starts"]

#: Takes a rule, a text and a severity.
Complain = Callable[[str, str, Severity], None]

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_START: Final = re.compile(r"\bray\s+start\b")
_MODE: Final = re.compile(r"\bRAY_AUTH_MODE=[\"']?token\b")
_EVERYWHERE: Final = re.compile(r"--[\w-]*host[= ][\"']?(0\.0\.0\.0|\[?::\]?)(?=[\"'\s;&|)]|$)")
_STORAGE: Final = re.compile(r"(?:\bTUNE_RESCON_STORAGE=|--storage[= ])([\"']?)([^\s\"';&|]+)\1")


def option(text: str, name: str) -> str | None:
    """The value of ``--name=VALUE`` or ``--name VALUE``; None where it is not given.

    >>> option("ray start --head --num-cpus=0", "num-cpus")
    '0'
    """
    found = re.search(rf"--{re.escape(name)}[= ]+([^\s;&|]+)", text)
    return found[1].strip("\"'") if found else None


def ray_starts(command: str) -> list[str]:
    """Each ``ray start`` of a command, with what stands before it since the last one.

    >>> ray_starts("ulimit -n 9; RAY_AUTH_MODE=token ray start --head && echo up")
    ['ulimit -n 9; RAY_AUTH_MODE=token ray start --head ']
    """
    starts, begun = [], 0
    for found in _START.finditer(command):
        end = re.compile(r"[;&|\n]").search(command, found.end())
        stop = end.start() if end else len(command)
        starts.append(command[begun:stop])
        begun = stop
    return starts


def check_ray_starts(command: str, complain: Complain, *, where: str, head: bool) -> None:
    """Each ``ray start`` must take tokens only, and a head's dashboard must stay on loopback."""
    for start in ray_starts(command):
        if not _MODE.search(start):
            rule = "every `ray start` must have `RAY_AUTH_MODE=token` before it"
            hint = "Without it anyone who reaches the node's ports can run code there."
            complain("auth-mode", explain(rule, where=where, hint=hint), "error")
        host = option(start, "dashboard-host")
        if head and host not in _LOOPBACK:
            rule = "the head must be started with `--dashboard-host=127.0.0.1`"
            hint = "`python -m tune_rescon.cluster tunnel` shows it to you alone."
            complain("dashboard", explain(rule, got=host or "none", where=where, hint=hint), "error")


def check_listening(command: str, complain: Complain, *, where: str) -> None:
    """Nothing but Ray itself may listen on every interface."""
    for found in _EVERYWHERE.finditer(command):
        rule = "a server must listen on 127.0.0.1, to be reached by a tunnel"
        complain("listens", explain(rule, got=f"`{found[0]}`", where=where), "error")


def check_storage(commands: Iterable[tuple[str, str]], complain: Callable[[str, str], None]) -> None:
    """Searches must be kept where every node can write.

    Args:
        commands: where each stands, and what it says.
        complain: takes where (or nothing) and a text.
    """
    hint = "A node's disk goes with the node: give a URL, such as s3://bucket/searches."
    given = False
    for where, command in commands:
        for found in _STORAGE.finditer(command):
            given = True
            try:
                local = isinstance(parse_storage(found[2]), Path)
            except StorageError:
                local = True
            if local:
                rule = "the storage of a search on several nodes must be a URL"
                complain(where, explain(rule, got=found[2], where=where, hint=hint))
    if not given:
        complain("", explain("TUNE_RESCON_STORAGE must be set on every node", got="nothing", hint=hint))
