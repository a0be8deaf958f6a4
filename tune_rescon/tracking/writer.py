"""Log a search to MLflow from a background thread, which makes the calls in a separate process.

The search only submits the newest state of a run. It neither waits for the tracking server nor gets its
errors. A call that fails is retried with increasing pauses, until it succeeds or :meth:`MlflowWriter.close`
runs out of time. The updates that are then unsent are counted and reported. The record contains all of them,
and a later run of the search or ``report --sync`` sends them.
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

from tune_rescon.config import trial_name
from tune_rescon.tracking.run_state import ACTIVE, Destination, RunState, TrialRunState
from tune_rescon.tracking.worker_client import CallError, RetryPolicy, Sink, WorkerProcess

__all__ = ["MlflowWriter", "UpdateQueue", "mlflow_writer"]


_SEARCH: Final = "search"
_SEARCH_END: Final = "its end"


@dataclass(frozen=True)
class _Waiting:
    run_state: RunState
    updates: int
    """Number of states of this run since the run was last sent."""
    due: float


class UpdateQueue:
    """A queue of states between two threads, with at most one state per run.

    Its size therefore depends on the number of runs, not on the number of updates. The state of an active run
    is held back for a moment, so that a trial with short epochs needs one request and not ten.
    """

    def __init__(self, *, debounce: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty queue.

        Args:
            debounce: Seconds for which the state of an active run is held back.
            clock: Returns the time in seconds.
        """
        self._debounce = debounce
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, _Waiting] = {}
        self._updates = 0
        self._closed = False

    def __len__(self) -> int:
        """Return the number of waiting updates."""
        return self._updates

    def put(self, run_state: RunState) -> None:
        """Add a state, and replace the waiting state of the same run."""
        with self._changed:
            key = _key(run_state)
            known = self._waiting.get(key)
            due = self._due(run_state) if known is None else known.due
            self._waiting[key] = _Waiting(run_state, 1 + (known.updates if known else 0), due)
            self._updates += 1
            self._changed.notify()

    def close(self) -> None:
        """Close the queue: no more states follow, and waiting states are no longer held back."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def next(self) -> tuple[RunState, int] | None:
        """Wait for the first state that is due; return it and the number of updates that it includes.

        Returns None if the queue is closed and empty. The state stays in the queue until :meth:`done`.
        """
        with self._changed:
            while True:
                left = None
                if self._waiting:
                    first = next(iter(self._waiting.values()))
                    left = first.due - self._clock()
                    if self._closed or left <= 0:
                        return first.run_state, first.updates
                elif self._closed:
                    return None
                self._changed.wait(left)

    def done(self, run_state: RunState, updates: int) -> None:
        """Remove ``run_state``, which was sent or refused; a newer state of the same run keeps waiting."""
        with self._changed:
            key = _key(run_state)
            known = self._waiting.pop(key)
            self._updates -= updates
            if known.run_state is run_state:
                return
            newer = _Waiting(known.run_state, known.updates - updates, self._due(known.run_state))
            end = self._waiting.pop(_SEARCH_END, None)
            if end is None:
                self._waiting[key] = newer
            elif key == _SEARCH:
                # After the search's end, this state would mark the search as running again. The state of the
                # end contains all of its content.
                self._waiting[_SEARCH_END] = dataclasses.replace(end, updates=end.updates + newer.updates)
            else:
                self._waiting |= {key: newer, _SEARCH_END: end}

    def _due(self, run_state: RunState) -> float:
        return self._clock() + (self._debounce if run_state.state == ACTIVE else 0.0)


def _key(run_state: RunState) -> Hashable:
    if isinstance(run_state, TrialRunState):
        return run_state.number
    # A search is sent before its trials, and its end after them.
    return _SEARCH if run_state.state == ACTIVE else _SEARCH_END


_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")

#: Seconds between the attempts of a failing call: the first and the longest pause.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0

#: Seconds that :meth:`MlflowWriter.close` waits for a call in progress after its own time limit.
LAST_CALL: Final = 5.0

#: Seconds for which the state of an active run is held back. All updates in that time are one request.
DEBOUNCE_SECONDS: Final = 0.5

#: Pause after a call while the search runs, as a multiple of the call's duration. A server may share its
#: machine with the trials, a database may share its disk with the record, and a remote server has other
#: clients.
REST: Final = 2.0


@contextmanager
def mlflow_writer(destination: Destination, *, delay: float = 0.0) -> Iterator[MlflowWriter]:
    """Provide a started writer for the block, and end its process afterwards.

    Updates that are still waiting at the end of the block are not sent.

    Args:
        destination: The MLflow store.
        delay: The delay of :meth:`MlflowWriter.start`, in seconds.
    """
    writer = MlflowWriter(destination)
    writer.start(delay)
    try:
        yield writer
    finally:
        writer.close(0)


class MlflowWriter:
    """Accepts states on the search's thread and sends them from a separate thread."""

    def __init__(
        self, destination: Destination, *, open_worker: Callable[[Destination], Sink] = WorkerProcess
    ) -> None:
        """Create the writer without starting it; see :meth:`start`."""
        self.uri = destination.uri
        self._worker = open_worker(destination)
        self._queue = UpdateQueue(debounce=DEBOUNCE_SECONDS)
        self._opened: queue.Queue[tuple[int, str]] = queue.Queue()
        self._known: set[int] = set()
        self._delay = 0.0
        self._awake = threading.Event()
        self._flushed = threading.Event()
        self._give_up = threading.Event()
        self._refused = 0
        self._refusal = ""
        self.last_error = ""
        """The error of the last call in one line; empty if the call succeeded."""
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)

    @property
    def pending_updates(self) -> int:
        """The number of updates that are not sent yet; 0 during the delay of :meth:`start`."""
        return len(self._queue) if self._awake.is_set() else 0

    @property
    def reason(self) -> str:
        """The reason why updates were not sent: the error of the last call, or of the last refused call."""
        return self.last_error or self._refusal

    def start(self, delay: float = 0.0) -> None:
        """Start to send updates. Before this call, the writer creates nothing in the store.

        Args:
            delay: Seconds to wait for :meth:`wake` first, because importing MLflow takes seconds of CPU time.
        """
        self._delay = delay
        self._thread.start()

    def wake(self) -> None:
        """End the delay of :meth:`start`."""
        self._awake.set()

    def submit(self, run_state: RunState) -> None:
        """Queue ``run_state`` for MLflow. Always returns at once. Submit the search before its trials."""
        self._queue.put(run_state)

    def opened_runs(self) -> list[tuple[int, str]]:
        """Return the trial numbers and run ids of the child runs opened since the last call."""
        opened = []
        while True:
            try:
                opened.append(self._opened.get_nowait())
            except queue.Empty:
                return opened

    def flush(self) -> None:
        """Send all states without delay from now on, because only the last states of the search follow."""
        self._queue.close()
        self._flushed.set()
        self._awake.set()
        self._worker.flush()

    def close(self, timeout: float) -> int:
        """Send the waiting updates, end the process, and return the number of unsent updates.

        Args:
            timeout: Seconds for sending; a call in progress gets :data:`LAST_CALL` seconds more.
        """
        self.flush()
        self._thread.join(timeout)
        self._give_up.set()
        self._thread.join(LAST_CALL)
        # A call that hangs longer ends with its process, and its updates count as unsent.
        self._worker.close()
        self._thread.join(LAST_CALL)
        return self.pending_updates + self._refused

    def _run(self) -> None:
        pause = FIRST_PAUSE
        self._awake.wait(self._delay)
        self._awake.set()
        # After the search has ended, the process is needed only to send a state; the first state starts it.
        if not self._flushed.is_set():
            with suppress(OSError):  # the process cannot start now: the first state reports that and retries
                self._worker.start()
        while not self._give_up.is_set():
            due = self._queue.next()
            if due is None:
                return
            run_state, updates = due
            began, was_ending = time.monotonic(), self._flushed.is_set()
            try:
                self._send(run_state)
            except CallError as error:
                if error.policy is RetryPolicy.RETRY:
                    pause = self._pause(pause, error, was_ending=was_ending)
                    continue
                if error.policy is RetryPolicy.ABORT:
                    self.last_error = error.message
                    self._report(f"MLflow cannot be used: {error.message}")
                    return
                self._refuse(run_state, updates, error.message)
            self._queue.done(run_state, updates)
            self.last_error, pause = "", FIRST_PAUSE
            self._flushed.wait(REST * (time.monotonic() - began))

    def _refuse(self, run_state: RunState, updates: int, message: str) -> None:
        self._refused += updates
        if message != self._refusal:
            self._refusal = message
            what = (
                trial_name(run_state.number) if isinstance(run_state, TrialRunState) else "the search itself"
            )
            self._report(f"MLflow refuses an update of {what}, which is left out: {message}")

    def _report(self, text: str) -> None:
        """Log a message to the user: an action that was taken, or one that can never succeed."""
        _LOGGER.warning("%s", text)
        try:
            _PROGRESS.info(text)
        except Exception:
            # A closed terminal is no reason to stop sending.
            _LOGGER.exception("this could not be printed: %s", text)

    def _pause(self, seconds: float, error: CallError, *, was_ending: bool) -> float:
        """Wait before the next attempt.

        Args:
            seconds: The length of the pause.
            error: The error of the call.
            was_ending: True if the search had ended when the call was made. If the search has ended since
                then, the call is repeated at once.

        Returns:
            The length of the pause after the next failure, in seconds.
        """
        self.last_error = error.message
        _LOGGER.warning("MLflow did not accept a call; next try in %.1f s: %s", seconds, error.message)
        # The end of the search cuts the pause short, for one immediate attempt. A later pause is cut short
        # only by the end of the writer.
        (self._give_up if was_ending else self._flushed).wait(seconds)
        return min(2 * seconds, LONGEST_PAUSE)

    def _send(self, run_state: RunState) -> None:
        answer = self._worker.send(run_state)
        for remark in answer.remarks:
            self._report(remark)
        if isinstance(run_state, TrialRunState) and run_state.number not in self._known:
            self._known.add(run_state.number)
            self._opened.put((run_state.number, answer.run_id))
