"""The one writer: a background thread that has MLflow show what the search is, through a process of its own.

The search only leaves the newest view of a run here: it never waits for the tracking server and never sees
its errors. A call that fails is made again, with growing pauses, until it succeeds or
:meth:`MlflowWriter.close` runs out of time. What then still waits is counted and said; the record has it all,
and a later run of the search, or ``report --sync``, sends it.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from tune_rescon.tracking.messages import ACTIVE, Destination, TrialRunState, View
from tune_rescon.tracking.worker_client import CallError, RetryPolicy, Shower, WorkerProcess

__all__ = [
    "MlflowWriter",
    "UpdateQueue",
    "mlflow_writer",
]


_SEARCH: Final = "search"
_ITS_END: Final = "its end"


@dataclass(frozen=True)
class _Waiting:
    view: View
    updates: int
    """How many views of this run there were since it was last sent."""
    due: float


class UpdateQueue:
    """Hands the views of one thread to another. Its size is that of the search, not of what happened.

    A run that goes on is held back for a moment, so that a trial of short epochs is one request, not ten.
    """

    def __init__(self, *, settle: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``settle``: seconds for which the view of a run that goes on is held back."""
        self._settle = settle
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, _Waiting] = {}
        self._updates = 0
        self._closed = False

    def __len__(self) -> int:
        """Updates that wait."""
        return self._updates

    def put(self, view: View) -> None:
        """Replace what waits of this run."""
        with self._changed:
            key = _key(view)
            known = self._waiting.get(key)
            due = self._due(view) if known is None else known.due
            self._waiting[key] = _Waiting(view, 1 + (known.updates if known else 0), due)
            self._updates += 1
            self._changed.notify()

    def close(self) -> None:
        """Nothing more comes: hold nothing back."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self) -> tuple[View, int] | None:
        """Wait for what is due first, and how many updates it stands for; None: closed, and all is sent.

        It stays here until it is :meth:`done`.
        """
        with self._changed:
            while True:
                first = next(iter(self._waiting.values()), None)
                if first is None and self._closed:
                    return None
                left = None if first is None else first.due - self._clock()
                if first is not None and (self._closed or (left or 0.0) <= 0):
                    return first.view, first.updates
                self._changed.wait(left)

    def done(self, view: View, updates: int) -> None:
        """``view`` is settled, one way or the other; what came of the same run since still waits."""
        with self._changed:
            key = _key(view)
            known = self._waiting.pop(key)
            self._updates -= updates
            if known.view is view:
                return
            newer = _Waiting(known.view, known.updates - updates, self._due(known.view))
            end = self._waiting.pop(_ITS_END, None)
            if end is None:
                self._waiting[key] = newer
            elif key == _SEARCH:
                # Sent after its end it would have the search go on; the end shows all that it does.
                self._waiting[_ITS_END] = dataclasses.replace(end, updates=end.updates + newer.updates)
            else:
                self._waiting |= {key: newer, _ITS_END: end}

    def _due(self, view: View) -> float:
        return self._clock() + (self._settle if view.state == ACTIVE else 0.0)


def _key(view: View) -> Hashable:
    if isinstance(view, TrialRunState):
        return view.number
    # A search is shown before its trials, and its end after them.
    return _SEARCH if view.state == ACTIVE else _ITS_END


_LOGGER = logging.getLogger(__name__)

#: Seconds between tries of a call that fails: the first pause and the longest.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

#: Seconds :meth:`MlflowWriter.close` gives a call that is in flight when its time is up.
LAST_CALL: Final = 5.0

#: Seconds for which the view of a run that goes on is held back: what comes in them is one request.
SETTLE: Final = 0.5

#: Rest after a call while the search runs, as a multiple of what the call took. A server may share its
#: machine with the trials, a database its disk with the record, and one that is far away has others to serve.
REST: Final = 2.0


@contextmanager
def mlflow_writer(
    destination: Destination, say: Callable[[str], object] = _LOGGER.info, *, delay: float = 0.0
) -> Iterator[MlflowWriter]:
    """A writer that has begun, and whose process is gone afterwards; what waits then is not sent any more.

    Args:
        destination: the store.
        say: tells the user what was done or can never be done. It is called on the writer's thread.
        delay: as of :meth:`MlflowWriter.start`.
    """
    writer = MlflowWriter(destination, say=say)
    writer.start(delay)
    try:
        yield writer
    finally:
        writer.close(0)


class MlflowWriter:
    """Takes views from the search's thread, and sends them from its own."""

    def __init__(
        self,
        destination: Destination,
        *,
        open_desk: Callable[[Destination], Shower] = WorkerProcess,
        say: Callable[[str], object] = _LOGGER.info,
    ) -> None:
        """Describe the store; :meth:`start` begins.

        Args:
            destination: the store.
            open_desk: makes what makes the calls.
            say: see :func:`mlflow_writer`.
        """
        self._uri = destination.uri
        self._desk = open_desk(destination)
        self._backlog = UpdateQueue(settle=SETTLE)
        self._opened: queue.Queue[tuple[int, str]] = queue.Queue()
        self._say = say
        self._known: set[int] = set()
        self._delay = 0.0
        self._awake = threading.Event()
        self._hurry = threading.Event()
        self._give_up = threading.Event()
        self._refused = 0
        self._refusal = ""
        self._trouble = ""
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)

    @property
    def uri(self) -> str:
        """Where the runs go."""
        return self._uri

    @property
    def waiting(self) -> int:
        """Updates that are not sent yet; those that :meth:`start` holds back are not counted."""
        return len(self._backlog) if self._awake.is_set() else 0

    @property
    def trouble(self) -> str:
        """What the last call failed with, in a line; empty since one succeeded."""
        return self._trouble

    @property
    def reason(self) -> str:
        """Why updates were not sent: what the last call failed with, or the last refused one."""
        return self._trouble or self._refusal

    def start(self, delay: float = 0.0) -> None:
        """Begin sending what there is to send; before that, nothing is made anywhere.

        Args:
            delay: seconds to wait for :meth:`wake` first: to import MLflow is seconds of a processor's work.
        """
        self._delay = delay
        self._thread.start()

    def wake(self) -> None:
        """End the delay of :meth:`start`."""
        self._awake.set()

    def show(self, view: View) -> None:
        """Have MLflow show it. Returns at once, always. The search must be shown before its trials."""
        self._backlog.put(view)

    def opened_runs(self) -> list[tuple[int, str]]:
        """Trial numbers and run ids of the child runs opened since the last call."""
        opened = []
        while True:
            try:
                opened.append(self._opened.get_nowait())
            except queue.Empty:
                return opened

    def hurry(self) -> None:
        """Hold nothing back any more: nothing but the rest of the search's views is to come."""
        self._backlog.close()
        self._hurry.set()
        self._awake.set()
        self._desk.hurry()

    def close(self, timeout: float) -> int:
        """Send what waits, for ``timeout`` seconds (and the last call); the number of updates left unsent."""
        self.hurry()
        self._thread.join(timeout)
        self._give_up.set()
        self._thread.join(LAST_CALL)
        # A call that hangs for longer ends with its process, and counts as unsent.
        self._desk.close()
        self._thread.join(LAST_CALL)
        return self.waiting + self._refused

    def _run(self) -> None:
        pause = FIRST_PAUSE
        self._awake.wait(self._delay)
        self._awake.set()
        # At the end the process is needed only if there is something to send: the first view starts it.
        if not self._hurry.is_set():
            with suppress(OSError):  # no process to be had now: the first view says so, and asks again
                self._desk.start()
        while not self._give_up.is_set():
            waiting = self._backlog.next()
            if waiting is None:
                return
            view, updates = waiting
            began, was_ending = time.monotonic(), self._hurry.is_set()
            try:
                self._send(view)
            except CallError as error:
                if error.remedy is RetryPolicy.AGAIN:
                    pause = self._pause(pause, error, was_ending=was_ending)
                    continue
                if error.remedy is RetryPolicy.GIVE_UP:
                    self._trouble = error.words
                    self._tell(f"MLflow cannot be used: {error.words}")
                    return
                self._refuse(view, updates, error.words)
            self._backlog.done(view, updates)
            self._trouble, pause = "", FIRST_PAUSE
            self._hurry.wait(REST * (time.monotonic() - began))

    def _refuse(self, view: View, updates: int, words: str) -> None:
        self._refused += updates
        if words != self._refusal:
            self._refusal = words
            what = f"trial_{view.number:04d}" if isinstance(view, TrialRunState) else "the search itself"
            self._tell(f"MLflow refuses an update of {what}, which is left out: {words}")

    def _tell(self, text: str) -> None:
        _LOGGER.warning("%s", text)
        try:
            self._say(text)
        except Exception:
            # A terminal that is gone is no reason to stop sending.
            _LOGGER.exception("this could not be printed: %s", text)

    def _pause(self, seconds: float, error: CallError, *, was_ending: bool) -> float:
        """Wait before the next try; how long to wait after that.

        ``was_ending``: whether the search was over when the call was made. If it ended since, the call is
        repeated at once.
        """
        self._trouble = error.words
        _LOGGER.warning("MLflow does not take a call; next try in %.1f s: %s", seconds, error.words)
        # The end of the search is worth a try at once; after that, only its own end cuts a pause short.
        (self._give_up if was_ending else self._hurry).wait(seconds)
        return min(2 * seconds, LONGEST_PAUSE)

    def _send(self, view: View) -> None:
        answer = self._desk.show(view)
        for remark in answer.remarks:
            self._tell(remark)
        if isinstance(view, TrialRunState) and view.number not in self._known:
            self._known.add(view.number)
            self._opened.put((view.number, answer.run_id))
