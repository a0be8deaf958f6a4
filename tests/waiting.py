"""Wait for a condition instead of a fixed time, and reserve a port."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["LONGEST_WAIT", "reserved_port", "wait_until"]

#: Timeout of a wait in seconds. Even on a busy machine only a hang takes so long.
LONGEST_WAIT: Final = 200.0


def wait_until(condition: Callable[[], bool], *, every: float = 0.01) -> None:
    """Return as soon as ``condition`` returns True.

    Args:
        condition: The condition. It may raise, for example if the process that it checks has ended.
        every: Seconds between two calls of the condition.

    Raises:
        AssertionError: If the condition is not true within :data:`LONGEST_WAIT`.
    """
    deadline = time.monotonic() + LONGEST_WAIT
    while not condition():
        assert time.monotonic() < deadline, f"not true within {LONGEST_WAIT:g} s"
        time.sleep(every)


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of 127.0.0.1 without a listener.

    A port that is only known to be free may be taken by another program, or be the source port of a
    connection that should be refused. A server that sets SO_REUSEADDR, as most do, can listen on the reserved
    port.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])
