"""Wait for a condition instead of for a time, and reserve a port until a server takes it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["LONGEST_WAIT", "reserved_port", "wait_until"]

#: Seconds by the clock after which a wait gives up. Only a hang takes so long, also on a busy machine.
LONGEST_WAIT: Final = 200.0


def wait_until(true: Callable[[], bool], *, every: float = 0.01) -> None:
    """Return as soon as ``true`` returns True.

    Args:
        true: The condition. It may raise, for example once the process that it looks at has ended.
        every: Seconds between two calls of it.

    Raises:
        AssertionError: If it does not become true within :data:`LONGEST_WAIT`.
    """
    end = time.monotonic() + LONGEST_WAIT
    while not true():
        assert time.monotonic() < end, f"not true within {LONGEST_WAIT:g} s"
        time.sleep(every)


@contextmanager
def reserved_port() -> Iterator[int]:
    """Provide a port of 127.0.0.1 where nothing listens, and that no other program is given.

    A port that was free a moment ago may be another program's by now, or the source port of the connection
    that a test expects to be refused. A server that sets SO_REUSEADDR, as most do, can listen on this one.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
