"""What the main thread looks at while the trials run: signals, Ray, the lease."""

from __future__ import annotations

from collections.abc import Callable

from tune_rescon.errors import explain
from tune_rescon.tuning.execution.interruption import Interruption, Urgency

__all__ = ["Watch"]


class Watch:
    """Says when the trials are not to be waited for any longer, and remembers why."""

    def __init__(
        self,
        interruption: Interruption,
        *,
        ray_gone: Callable[[], str],
        assure: Callable[[], None],
        interrupt: Callable[[], None],
        say: Callable[[str], object],
    ) -> None:
        """Look at everything on each call of :meth:`leave`.

        Args:
            interruption: the signals.
            ray_gone: what of Ray has died, "" for nothing.
            assure: raises when the search is another driver's.
            interrupt: has each running trial end after its present epoch.
            say: tells the user.
        """
        self._interruption = interruption
        self._ray_gone = ray_gone
        self._assure = assure
        self._interrupt = interrupt
        self._say = say
        self._heard = Urgency.NONE
        self._gone = ""
        self._signals_before_end: int | None = None

    def leave(self) -> bool:
        """Whether to leave the trials now.

        Raises:
            LeaseLostError: the search is another driver's.
        """
        self._assure()
        self._hear()
        # A signal to everything at once reaches Ray before it is looked for here: it gets a second look.
        gone_before, self._gone = self._gone, self._ray_gone()
        return self._heard is Urgency.STOP or bool(gone_before)

    def trials_ended(self) -> None:
        """From now on each signal cuts the remaining waits short: no epoch is left to be finished."""
        self._signals_before_end = self._interruption.count

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked for the end."""
        return self._interruption.urgency is not Urgency.NONE

    def hurried(self, call: Callable[[float], int], patience: float, hurried: float) -> int:
        """Have ``call`` wait ``patience`` seconds; less before a deadline; ``hurried`` once that has come.

        A signal that comes meanwhile ends the wait: nobody waits twice for the same thing.
        """
        left = self._interruption.seconds_left
        if self._interruption.urgency is Urgency.STOP or self._interrupted_at_the_end:
            patience = hurried
        elif left is not None:
            patience = min(patience, max(left, hurried))
        self._interruption.deferred = False
        try:
            return call(patience)
        except KeyboardInterrupt:
            self._interruption.deferred = True
            return call(hurried)
        finally:
            self._interruption.deferred = True

    @property
    def _interrupted_at_the_end(self) -> bool:
        before = self._signals_before_end
        return before is not None and self._interruption.count > before

    @property
    def ray_is_gone(self) -> bool:
        """Whether there is no Ray to run anything on."""
        self._gone = self._gone or self._ray_gone()
        return bool(self._gone)

    @property
    def failure(self) -> str | None:
        """Why the search could not go on, in a paragraph; None if that is not so."""
        if not self.ray_is_gone or self.interrupted:
            return None
        hint = (
            "Every epoch that was reported is recorded, and the trials go on from their checkpoints."
            " If it was killed for want of memory, run fewer trials at once (--concurrent)."
        )
        return explain(f"Ray must live as long as the search, but {self._gone} has died", hint=hint)

    def _hear(self) -> None:
        urgency = self._interruption.urgency
        if urgency is self._heard:
            return
        self._heard = urgency
        self._interrupt()
        self._say(_answer(urgency, self._interruption.seconds_left))


def _answer(urgency: Urgency, seconds_left: float | None) -> str:
    if urgency is Urgency.STOP:
        return "Interrupted: stopping now; what is recorded stays"
    until = "" if seconds_left is None else f" for at most {max(seconds_left, 0):.0f} s"
    return f"Interrupted: finishing the running epochs{until}; Ctrl-C again to stop now"
