"""Where searches are, and the options of one run of a search that are not part of its space."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tune_rescon.errors import ConfigError, format_error, shell_command
from tune_rescon.paths import expanded_path, home_directory
from tune_rescon.storage import StorageUrl, absolute_url
from tune_rescon.tuning.folder import SearchFolder, resolve_storage
from tune_rescon.tuning.lease import LEASE_SECONDS

__all__ = [
    "RunOptions",
    "SearchLocation",
    "absolute_storage",
    "command_at",
    "default_cache_root",
    "default_grace",
    "default_study",
    "location_flags",
    "resolve_data_root",
    "sync_command",
]

_GRACE: Final = "TUNE_RESCON_GRACE_SECONDS"

#: Longer than a driver takes to end after a SIGTERM, with its grace period and its waits for MLflow and the
#: storage.
TAKEOVER_SECONDS: Final = 180.0


def resolve_data_root(text: str | None = None) -> Path:
    """Return the folder where datasets are searched for and downloaded to.

    If ``text`` is empty or None, it is ``$TUNE_RESCON_DATA``, or ``./data`` without that.

    Raises:
        ConfigError: If the folder begins with a home directory that this machine does not have.
    """
    return expanded_path(text or os.environ.get("TUNE_RESCON_DATA") or "data", where="--data-root")


def default_cache_root() -> Path:
    """Return ``$TUNE_RESCON_CACHE`` or the user's cache directory, where a node caches decoded images.

    Raises:
        ConfigError: If neither can be determined.
    """
    if given := os.environ.get("TUNE_RESCON_CACHE"):
        return expanded_path(given, where="TUNE_RESCON_CACHE")
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tune_rescon"
    return home_directory("TUNE_RESCON_CACHE") / ".cache" / "tune_rescon"


def default_study() -> str | None:
    """Return ``$TUNE_RESCON_STUDY``, the URL of the studies' database, which may contain a password.

    If it is not set, return None: each study is then in its search's folder.
    """
    return os.environ.get("TUNE_RESCON_STUDY") or None


def default_grace() -> float:
    """Return ``$TUNE_RESCON_GRACE_SECONDS``, or 15 seconds if it is not set.

    Kubernetes gives a process 30 seconds to stop, and writing files, MLflow and Ray need part of them. A spot
    notice gives 120 seconds. ``docker stop`` gives 10 seconds, which its option ``-t`` changes.

    Raises:
        ConfigError: If the variable is not a number of seconds, or is negative.
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
class SearchLocation:
    """Where searches and their images are."""

    storage: Path | StorageUrl = field(default_factory=resolve_storage)
    study_url: str | None = field(default_factory=default_study)
    """The URL of the studies' database; None for the SQLite file in each search's folder."""
    data_root: Path = field(default_factory=resolve_data_root)
    cache_root: Path = field(default_factory=default_cache_root)

    def study_of(self, folder: SearchFolder) -> str:
        """Return the URL of the database that has the study of the search in ``folder``."""
        return self.study_url or folder.study_url


@dataclass(frozen=True, kw_only=True)
class RunOptions(SearchLocation):
    """Options that set where a search runs and what it writes to. Its size and seed are in the space."""

    name: str
    resume: bool = False
    resume_or_start: bool = False
    """Resume the search if it has begun, otherwise start it. In both cases the space is the command's."""
    tracking_uri: str | None = None
    """MLflow's tracking URI. If None, SQLite in the storage, or in the search's folder if that is a URL."""
    address: str | None = None
    """The address of the Ray cluster. None to start Ray on this machine for the duration of the search."""
    warm_start: str | None = None
    """A search in the same storage. The sampler learns from its trials where the spaces overlap."""
    grace_seconds: float = field(default_factory=default_grace)
    """Seconds that running epochs have after a SIGTERM before the search stops."""
    lease_seconds: float = LEASE_SECONDS
    """Seconds for which a driver on another machine must be silent before its search is taken over.

    The time is four times as long if the storage is a URL.
    """
    takeover_seconds: float = TAKEOVER_SECONDS
    """Seconds that ``resume_or_start`` waits for another driver to end before it raises a LeaseError."""
    show_progress: bool = False
    """Show a bar while images are decoded."""
    divert_output: bool = False
    """Send standard output and standard error to the search's log while the trials run.

    This is for a caller that prints elsewhere. Ray's C++ code writes to standard output and standard error.
    """
    tensorboard: bool = False
    """Also write TensorBoard's event files; see :mod:`tune_rescon.tuning.tensorboard_callback`."""


def absolute_storage(location: SearchLocation) -> str:
    """Return the storage in a form that a command can use from any directory."""
    return str(location.storage.absolute() if isinstance(location.storage, Path) else location.storage)


def location_flags(storage: str, study_url: str | None) -> list[tuple[str, str | None, str | None]]:
    """Return the flags of :func:`.shell_command` that name a search's location from any directory."""
    study = None if study_url is None else absolute_url(study_url)
    return [("--storage", storage, "TUNE_RESCON_STORAGE"), ("--study", study, "TUNE_RESCON_STUDY")]


def command_at(location: SearchLocation, words: Sequence[str]) -> str:
    """Return a shell command that begins with ``words`` and names the location of its search."""
    return shell_command(words, location_flags(absolute_storage(location), location.study_url))


def sync_command(options: RunOptions) -> str:
    """Return the shell command that sends MLflow the missing parts of the search."""
    return f"{command_at(options, ['python', '-m', 'tune_rescon.report', options.name])} --sync"
