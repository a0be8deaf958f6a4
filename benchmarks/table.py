"""The rows that the benchmarks print: what was measured, against which target, and whether it is met."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

__all__ = ["MARK", "Row", "estimate", "estimate_text", "hardware", "print_rows", "read_rows", "spread"]

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
        """In a word or two; none where there is no target."""
        return self.target and {True: "met", False: "missed", None: "not measured"}[self.met]

    def __str__(self) -> str:
        """As a line of a markdown table."""
        return f"| {self.what} | {self.measured} | {self.target} | {self.verdict} |"


def print_rows(rows: Iterable[Row]) -> None:
    """A markdown table for a person; lines of JSON where :data:`MARK` is set."""
    if os.environ.get(MARK):
        for row in rows:
            print(MARK, json.dumps(asdict(row)))
        return
    print("\n| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        print(row)


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


def estimate(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; nan of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def estimate_text(values: Sequence[float], digits: int = 2, *, signed: bool = False) -> str:
    """The same in words, with a sign for a difference."""
    mean, error = estimate(values)
    return f"{mean:{'+' if signed else ''}.{digits}f} ± {error:.{digits}f}"


def hardware(device: str, *packages: str) -> str:
    """What the figures are of: the processor, or for ``cuda`` the first GPU, and versions."""
    what = _gpu() if device == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    return ", ".join(
        [f"{what}; Python {platform.python_version()}", *(f"{n} {version(n)}" for n in packages)]
    )


def _gpu() -> str:
    # Imported here: most benchmarks need no torch in this process.
    import torch

    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return named[0] if named else platform.machine()
