"""What became of one search, and the file that remembers it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storm.findings import Fault, Findings
from storm.lives import Life

__all__ = ["MOMENTS", "Outcome", "read_outcomes"]

#: In which part of its work a driver can be when it is killed.
MOMENTS = ("start-up", "trials", "after the last epoch")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One search of one side after its storm."""

    side: str
    seed: int
    lives: Sequence[Life]
    findings: Findings
    trained: int
    """Epochs trained in all lives."""
    needed: int
    """Distinct epochs among them."""

    @property
    def seconds(self) -> float:
        """Wall time of all drivers."""
        return sum(life.seconds for life in self.lives)

    @property
    def returns(self) -> list[float]:
        """Seconds from the start of each driver but the first to the first epoch trained under it."""
        return [life.first_epoch for life in self.lives[1:] if life.first_epoch is not None]

    @property
    def moments(self) -> dict[str, int]:
        """In which part of its work each killed driver was."""
        found = dict.fromkeys(MOMENTS, 0)
        for life in self.lives:
            if life.exit_code is None:
                found[self._moment(life)] += 1
        return found

    def _moment(self, life: Life) -> str:
        if life.trained == self.trained:
            return "after the last epoch"
        return "start-up" if life.first_epoch is None else "trials"

    def to_json(self) -> str:
        """One line."""
        # A Counter does not survive `asdict`.
        found = {"counts": dict(self.findings.counts), "notes": self.findings.notes}
        return json.dumps({**vars(self), "lives": [asdict(life) for life in self.lives], "findings": found})

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """Back from :meth:`to_json`."""
        values: dict[str, Any] = json.loads(line)
        found = values["findings"]
        counts = Counter({Fault(fault): count for fault, count in found["counts"].items()})
        findings = Findings(counts=counts, notes=found["notes"])
        return cls(**{**values, "lives": [Life(**life) for life in values["lives"]], "findings": findings})


def read_outcomes(file: Path) -> Mapping[tuple[str, int], Outcome]:
    """What a file of lines holds, by side and seed; nothing if there is no file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    outcomes: Sequence[Outcome] = [Outcome.from_json(line) for line in lines]
    return {(outcome.side, outcome.seed): outcome for outcome in outcomes}
