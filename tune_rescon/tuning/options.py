"""What a person chooses for one run of a search, beside the space."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tune_rescon.tuning.folder import default_storage

__all__ = ["RunOptions", "default_cache_root", "default_data_root"]


def default_data_root() -> Path:
    """``$TUNE_RESCON_DATA``, or ``./data``: where datasets are looked for and downloaded to."""
    return Path(os.environ.get("TUNE_RESCON_DATA") or "data")


def default_cache_root() -> Path:
    """``$TUNE_RESCON_CACHE``, or the user's cache directory: where a node keeps decoded images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUNE_RESCON_CACHE") or Path(base) / "tune_rescon")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a search runs and what it writes to. Its size and seed are in the space."""

    name: str
    resume: bool = False
    storage: Path = field(default_factory=default_storage)
    study_url: str | None = None
    """The study's database; None: SQLite in the search's folder."""
    tracking_uri: str | None = None
    """MLflow; None: SQLite in the storage."""
    data_root: Path = field(default_factory=default_data_root)
    cache_root: Path = field(default_factory=default_cache_root)
    address: str | None = None
    """The Ray cluster; None: a Ray on this machine for the time of the search."""
    warm_start: str | None = None
    """A search of the same storage: its trials, where the spaces overlap, are the sampler's to learn from."""
    show_progress: bool = False
    """Show a bar while images are decoded."""
