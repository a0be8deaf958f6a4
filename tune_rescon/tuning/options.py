"""What a person chooses for one run of a search, beside the space."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tune_rescon.errors import ConfigError, format_error
from tune_rescon.home import home_directory
from tune_rescon.passwords import shell_command
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning.folder import default_storage
from tune_rescon.tuning.lease import LEASE_SECONDS

__all__ = [
    "RunOptions",
    "absolute_storage",
    "default_cache_root",
    "default_data_root",
    "default_grace",
    "default_study",
    "sync_command",
]

_GRACE: Final = "TUNE_RESCON_GRACE_SECONDS"


def default_data_root() -> Path:
    """``$TUNE_RESCON_DATA``, or ``./data``: where datasets are looked for and downloaded to."""
    return Path(os.environ.get("TUNE_RESCON_DATA") or "data")


def default_cache_root() -> Path:
    """``$TUNE_RESCON_CACHE``, or the user's cache directory: where a node keeps decoded images.

    Raises:
        ConfigError: neither is known.
    """
    if given := os.environ.get("TUNE_RESCON_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tune_rescon"
    return home_directory("TUNE_RESCON_CACHE") / ".cache" / "tune_rescon"


def default_study() -> str | None:
    """``$TUNE_RESCON_STUDY``: the studies' database, whose URL may hold a password; None: in each folder."""
    return os.environ.get("TUNE_RESCON_STUDY") or None


def default_grace() -> float:
    """``$TUNE_RESCON_GRACE_SECONDS``, or 15: Kubernetes gives 30, and files, MLflow and Ray take theirs.

    A spot notice gives 120, ``docker stop`` 10 (``-t`` changes that).

    Raises:
        ConfigError: the variable is no number of seconds.
    """
    value = os.environ.get(_GRACE) or "15"
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        rule = "must be a number of seconds, 0 or more"
        raise ConfigError(format_error(rule, got=repr(value), where=_GRACE))
    return seconds


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a search runs and what it writes to. Its size and seed are in the space."""

    name: str
    resume: bool = False
    storage: Path | StorageUrl = field(default_factory=default_storage)
    study_url: str | None = field(default_factory=default_study)
    """The study's database; None: SQLite in the search's folder."""
    tracking_uri: str | None = None
    """MLflow; None: SQLite in the storage, or in the search's own folder where that is a URL."""
    data_root: Path = field(default_factory=default_data_root)
    cache_root: Path = field(default_factory=default_cache_root)
    address: str | None = None
    """The Ray cluster; None: a Ray on this machine for the time of the search."""
    warm_start: str | None = None
    """A search of the same storage: its trials, where the spaces overlap, are the sampler's to learn from."""
    grace_seconds: float = field(default_factory=default_grace)
    """What running epochs have after a SIGTERM before the search stops."""
    lease_seconds: float = LEASE_SECONDS
    """How long a driver on another machine must be silent before its search is taken over; four times that
    where the storage is a URL."""
    show_progress: bool = False
    """Show a bar while images are decoded."""
    divert_output: bool = False
    """Have standard output and error go to the search's log while the trials run: for a caller who prints
    elsewhere. Ray's C++ writes there."""
    tensorboard: bool = False
    """Write TensorBoard's event files too: see :mod:`tune_rescon.tuning.tensorboard_callback`."""


def absolute_storage(options: RunOptions) -> str:
    """The storage as a command names it that may be typed in another directory."""
    return str(options.storage.absolute() if isinstance(options.storage, Path) else options.storage)


def sync_command(options: RunOptions) -> str:
    """The command that sends MLflow what it lacks of the search, as a person types it."""
    line = shell_command(
        ["python", "-m", "tune_rescon.report", options.name],
        [
            ("--storage", absolute_storage(options), "TUNE_RESCON_STORAGE"),
            ("--study", options.study_url, "TUNE_RESCON_STUDY"),
        ],
    )
    return f"{line} --sync"
