"""What waits to be sent: the newest view of each run, in the order in which they began to wait."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

from tune_rescon.tracking.views import ACTIVE, RunView, View

__all__ = ["Backlog"]

_SEARCH: Final = "search"
_ITS_END: Final = "its end"


@dataclass(frozen=True)
class _Waiting:
    view: View
    updates: int
    """How many views of this run there were since it was last sent."""
    due: float


class Backlog:
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
    if isinstance(view, RunView):
        return view.number
    # A search is shown before its trials, and its end after them.
    return _SEARCH if view.state == ACTIVE else _ITS_END
