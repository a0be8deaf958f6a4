"""The rows that the benchmarks print: what was measured, against which target, and whether it is met."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ["MARK", "Row", "hardware", "print_rows", "read_rows", "spread"]

#: Set where another benchmark reads the rows: they are printed as JSON, a line each, behind this word.
MARK = "TUNE_RESCON_ROW"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str
    met: bool | None
    """None: this machine cannot tell."""

    @property
    def verdict(self) -> str:
        """In a word or two."""
        return {True: "met", False: "missed", None: "not measured"}[self.met]


def print_rows(rows: Iterable[Row]) -> None:
    """A markdown table for a person; lines of JSON where :data:`MARK` is set."""
    if os.environ.get(MARK):
        for row in rows:
            print(MARK, json.dumps(asdict(row)))
        return
    print("\n| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.measured} | {row.target} | {row.verdict} |")


def read_rows(output: str) -> list[Row]:
    """The rows in what a benchmark printed."""
    lines = (line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK))
    return [Row(**json.loads(line)) for line in lines]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and first and third quartile; fewer than four values: the smallest and the largest."""
    if len(values) < 4:
        low, high = min(values), max(values)
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def hardware(device: str, *packages: str) -> str:
    """What the figures are of: processor or GPU, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    what = f"{_processor()}, {os.cpu_count()} cores" if device == "cpu" else device
    return f"{what}; Python {platform.python_version()}{', ' if versions else ''}{versions}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()
