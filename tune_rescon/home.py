"""The user's home directory, which a container's user without a passwd entry does not have."""

from __future__ import annotations

import os
from pathlib import Path

from tune_rescon.errors import ConfigError, format_error

__all__ = ["ensure_home", "expanded_path", "home_directory"]


def ensure_home() -> None:
    """Set ``HOME`` to the cache directory if the user has no home directory.

    Ray Tune and other libraries look up the home directory when they are imported. ``HOME`` is not changed
    if the user has a home directory, or if neither ``TUNE_RESCON_CACHE`` nor ``XDG_CACHE_HOME`` is set.
    Child processes inherit ``HOME``.
    """
    try:
        Path.home()
    except RuntimeError:
        cache = os.environ.get("TUNE_RESCON_CACHE") or os.environ.get("XDG_CACHE_HOME")
        if cache:
            os.environ["HOME"] = str(Path(cache).absolute())


def home_directory(variable: str) -> Path:
    """Return the user's home directory.

    Args:
        variable: the environment variable to set if the user has no home directory; the error names it.

    Raises:
        ConfigError: the user has no home directory; the error names the variable to set.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        rule = "must be set where the user has no home directory"
        raise ConfigError(format_error(rule, where=variable, hint=f"Set {variable} to a path.")) from error


def expanded_path(path: str | Path, *, where: str) -> Path:
    """Return ``path`` with the home directory in place of ``~`` or ``~NAME``.

    Args:
        path: the path.
        where: the flag or field with the path; the error message names it.

    Raises:
        ConfigError: this machine has no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        rule = "must begin with a home directory that this machine has"
        raise ConfigError(format_error(rule, got=path, where=where, hint="Give its whole path.")) from None
