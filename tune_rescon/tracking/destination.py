"""Where a search's runs go, and under which names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Destination"]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """An MLflow store, and what a search is called there."""

    uri: str
    """The tracking URI."""
    experiment: str
    """The experiment's name: the dataset's."""
    search: str
    """The parent run's name, and the tag that all runs of the search carry."""
    metric: str
    maximize: bool
    """Whether a larger ``metric`` is better."""
    artifacts: Path | None = None
    """Where an experiment that is made now keeps its files; None: where the server says."""
