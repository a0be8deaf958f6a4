"""What can be wrong with a search after a storm, in one vocabulary for both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Fault", "Findings", "count_epochs"]


class Fault(StrEnum):
    """A row of the table: something that must be zero."""

    NOT_FINISHED = "searches not resumed to the end"
    STUCK = "starts refused: neither new nor resumable"
    TRIALS_LOST = "trials lost"
    TRIALS_TWICE = "trials there twice"
    EPOCHS_MISSING = "epochs missing in the results"
    EPOCHS_TWICE = "epochs twice in the results"
    RUNNING_IN_OPTUNA = "trials left RUNNING in Optuna"
    WRONG_IN_OPTUNA = "stopped trials told as COMPLETE, or the like"
    RUNS_MISSING = "MLflow: runs missing"
    RUNS_TWICE = "MLflow: more than one run of a trial"
    RUNS_RUNNING = "MLflow: runs left RUNNING"
    RUN_EPOCHS_MISSING = "MLflow: epochs missing"
    RUN_EPOCHS_TWICE = "MLflow: epochs twice"
    RUNGS_EMPTY = "rung values lost on resume"
    CHECKPOINTS = "checkpoints not as the contract says"
    ORPHANS = "orphan processes"
    OTHER = "other breaches of the contract"


@dataclass
class Findings:
    """Counts by fault, and a line for each so that it can be looked into."""

    counts: Counter[Fault] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, fault: Fault, note: str, count: int = 1) -> None:
        """Count a fault ``count`` times; nothing if ``count`` is 0."""
        if count:
            self.counts[fault] += count
            self.notes.append(f"{fault}: {note}")

    def expect(self, true: bool, fault: Fault, note: str) -> None:
        """Count a fault unless ``true``."""
        self.add(fault, note, 0 if true else 1)


def count_epochs(seen: Iterable[int], last: int) -> tuple[int, int]:
    """How many of the epochs 1 to ``last`` are missing, and how many are there again.

    >>> count_epochs([1, 2, 2, 4], 4)
    (1, 1)
    """
    times = Counter(seen)
    missing = sum(epoch not in times for epoch in range(1, last + 1))
    return missing, sum(count - 1 for count in times.values())
