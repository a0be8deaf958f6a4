"""Handle signals within a block, and restore the earlier handlers after it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["handled_signals", "restore_handler"]


@contextmanager
def handled_signals(handle: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Call ``handle`` for these signals within the block; only in the main thread.

    Args:
        handle: the handler.
        numbers: the signals.
    """
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            restore_handler(number, handler)


def restore_handler(number: int, handler: Any) -> None:
    """Install a handler that ``signal.signal`` or ``signal.getsignal`` has returned.

    None stands for a handler that C code had installed. Python cannot install it again, so the signal has its
    default effect from then on.

    Args:
        number: the signal.
        handler: the handler, or None.
    """
    signal.signal(number, signal.SIG_DFL if handler is None else handler)
