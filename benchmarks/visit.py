"""Where a visit to a GPU takes place, and the lines of its results (benchmarks/gpu_visit.py)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import Case

Found = Iterator[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Where a visit takes place."""

    device: str
    tiny: bool
    """True: everything as small as it can be, to try the programs on a CPU."""
    folder: Path
    images: Path | None
    results: Path = Path("visit.jsonl")
    """The file of the results, one JSON line each."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """The networks and their batches."""
        if self.tiny:
            return (Case(preset="cifar_attention56", batch_size=2),)
        texts = ("rescon_attention92_32:128", "attention56:64", "attention92:64")
        return tuple(Case.parse(text) for text in texts)


def append(results: Path, line: Mapping[str, Any]) -> None:
    """Append a line, which is on the disk when this returns, and print it."""
    text = json.dumps({"time": round(time.time(), 1), **line})
    with results.open("a") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(text, flush=True)


def images_of(visit: Visit) -> Any:
    from tune_rescon.config import DatasetConfig

    if visit.images is None:
        raise SystemExit("this part needs --images: CIFAR-10, train/CLASS/* and test/CLASS/*")
    return DatasetConfig(name="folder", path=str(visit.images))
