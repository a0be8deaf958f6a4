"""What a check of a cluster file has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Severity"]

#: An error keeps a cluster from being started; a warning is for its owner to weigh.
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One broken rule in a cluster file."""

    rule: str
    """Its name, such as ``auth-mode``."""

    text: str
    """Where in the file, the rule, what came, what to do."""

    line: int
    """Counted from 1."""

    severity: Severity = "error"

    def __str__(self) -> str:
        """As a command shows it, after the file's name."""
        return f"{self.line}: {self.severity}: {self.text} [{self.rule}]"
