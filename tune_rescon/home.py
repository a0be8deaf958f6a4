"""A home directory for libraries that ask for one when they are imported (Ray Tune, matplotlib)."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["ensure_home"]


def ensure_home() -> None:
    """Set ``HOME`` to the cache directory where the user has no home: a container's, without a passwd entry.

    Nothing is set if the user has a home, or gives neither ``TUNE_RESCON_CACHE`` nor ``XDG_CACHE_HOME``.
    Processes that are started from here inherit it.
    """
    try:
        Path.home()
    except RuntimeError:
        cache = os.environ.get("TUNE_RESCON_CACHE") or os.environ.get("XDG_CACHE_HOME")
        if cache:
            os.environ["HOME"] = str(Path(cache).absolute())
