"""What may become of a call to MLflow, and what is to be done about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Answer", "CallError", "Remedy"]


class Remedy(enum.Enum):
    """What helps after a call that failed."""

    AGAIN = enum.auto()
    """Making it again, later."""
    SKIP = enum.auto()
    """Nothing: the call itself is wrong. The next one may be right."""
    GIVE_UP = enum.auto()
    """Nothing, and the same holds for every call: the store cannot be used."""


class CallError(Exception):
    """A call to MLflow failed."""

    def __init__(self, words: str, remedy: Remedy) -> None:
        """``words``: the error in a line."""
        super().__init__(words, remedy)
        self.words = words
        self.remedy = remedy


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of calls that succeeded."""

    run_id: str
    remarks: tuple[str, ...] = ()
    """What the user should be told about them."""
