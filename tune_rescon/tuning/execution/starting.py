"""The start of a Ray of this machine's own: what must hold before it, and a second try where it fails."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from tune_rescon.errors import ClusterError, ConfigError, explain

__all__ = ["LONGER_START", "check_temp_dir", "first_line", "start_or_retry"]

_LOGGER: Final = logging.getLogger(__name__)

#: Bytes of a Unix socket's path: 108 in C, with the 0 at its end.
SOCKET_PATH: Final = 107

#: The longest path that Ray makes in its temporary directory, of a process number of so many digits.
_SOCKET: Final = "/ray/session_2026-01-01_00-00-00_000000_{}/sockets/plasma_store"

#: Ray's setting for how long its control store may take to start, seconds, where it took too long at first.
#: Its node manager has 30 s in any case (ray 2.60): at the second try its files are in memory.
LONGER_START: Final = {"RAY_gcs_server_port_wait_time_s": "120"}

_Started = TypeVar("_Started")


def check_temp_dir(environment: Mapping[str, str], *, pid: int) -> None:
    """Check that Ray's sockets fit into its temporary directory; batch systems give long ones.

    Args:
        environment: ``RAY_TMPDIR`` or ``TMPDIR`` name the directory; else it is ``/tmp``.
        pid: the process that starts Ray.

    Raises:
        ConfigError: the directory's path is too long.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), "")
    room = SOCKET_PATH - len(_SOCKET.format(pid).encode())
    got = len(os.fsencode(environment.get(name, "/tmp")))
    if got > room:
        rule = f"must be a path of at most {room} bytes: Ray puts its sockets there"
        hint = "Give Ray a short one: RAY_TMPDIR=/tmp."
        raise ConfigError(explain(rule, got=f"{got}: {environment[name]}", where=name, hint=hint))


def start_or_retry(
    start: Callable[[], _Started], clean_up: Callable[[], object], say: Callable[[str], object]
) -> _Started:
    """Start Ray; if that fails, once more with a longer limit (:data:`LONGER_START`).

    Args:
        start: starts it.
        clean_up: ends what a start that failed has left.
        say: tells the user that it takes longer.

    Raises:
        ClusterError: both failed.
    """
    try:
        return start()
    # Ray raises a bare Exception where its node manager is not there in time.
    except Exception as error:
        _LOGGER.exception("Ray did not start")
        clean_up()
        say(f"Ray did not start ({first_line(error)}); trying once more")
    try:
        with _set_in_environment(LONGER_START):
            return start()
    except Exception as error:
        _LOGGER.exception("Ray did not start, also at the second try")
        clean_up()
        hint = (
            "The machine may be overloaded, or short of memory or room in /tmp: try again when it is not, or"
            " run fewer searches at once."
        )
        rule = "Ray must start on this machine"
        raise ClusterError(explain(rule, got=f"two failures ({first_line(error)})", hint=hint)) from error


def first_line(error: Exception) -> str:
    """What an error says, without the rest; its type if it says nothing."""
    return str(error).strip().partition("\n")[0].strip(" .") or type(error).__name__


@contextmanager
def _set_in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have ``values`` in the environment, unless the user has others there."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
