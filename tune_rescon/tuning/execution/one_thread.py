"""One thread for all trials of a process: what libraries keep for a thread is there for the next trial.

Ray runs each trial on a new thread. torch keeps for each thread which of cuDNN's algorithms it has found the
fastest for a convolution (a ``thread_local`` of its Conv_v8.cpp): a process's next trial would try them all
again. OpenMP keeps a team of threads for each that asks for one.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

__all__ = ["on_one_thread"]

_Result = TypeVar("_Result")

_TODO: Final[queue.SimpleQueue[tuple[Callable[[], object], Future[object]]]] = queue.SimpleQueue()
_BEGINNING: Final = threading.Lock()


def on_one_thread(work: Callable[[], _Result]) -> _Result:
    """What ``work`` returns, run on the thread on which this process has run all others, after them.

    Raises:
        BaseException: what ``work`` has raised, ``SystemExit`` too, by which Tune ends a trial.
    """
    done: Future[_Result] = Future()
    with _BEGINNING:
        _begin()
    _TODO.put((work, done))  # type: ignore[arg-type]  # of any result
    return done.result()


@functools.cache
def _begin() -> None:
    # A daemon, unlike an executor's: a process that is told to end need not wait for a trial.
    threading.Thread(target=_serve, name="trials", daemon=True).start()


def _serve() -> None:
    while True:
        # A frame of its own: what is done is not kept until the next work comes.
        _do(*_TODO.get())


def _do(work: Callable[[], object], done: Future[object]) -> None:
    try:
        done.set_result(work())
    except BaseException as error:
        done.set_exception(error)
