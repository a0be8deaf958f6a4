"""How large a folder's images are, from the headers of a few, and how large the cache keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tune_rescon.data.decode import BadImageError, probe_size

__all__ = ["LARGEST_NATIVE_SIDE", "common_size", "stored_size"]

#: Images all of one size are kept as they are up to this side, pixels; larger or mixed ones are scaled to it.
LARGEST_NATIVE_SIDE: Final = 256

_PROBED = 32


def common_size(source: Path, names: Sequence[str]) -> tuple[int, int] | None:
    """(width, height) that images spread over the listing share; None if they differ or none can be read.

    A judgement from 32 headers: the decoder checks every image.
    """
    step = max(1, len(names) // _PROBED)
    sizes = set()
    for name in names[::step]:
        try:
            sizes.add(probe_size(source, name))
        except BadImageError:
            continue
        if len(sizes) > 1:
            return None
    return sizes.pop() if sizes else None


def stored_size(common: tuple[int, int] | None, store_size: int | None) -> tuple[int, tuple[int, int] | None]:
    """Side of the cache's squares, and the size every image must then have (None: any).

    >>> stored_size((48, 32), None)
    (32, (48, 32))
    >>> stored_size((1920, 1080), None), stored_size(None, None), stored_size((32, 32), 64)
    ((256, None), (256, None), (64, None))
    """
    if store_size is not None:
        return store_size, None
    if common is None or min(common) > LARGEST_NATIVE_SIDE:
        return LARGEST_NATIVE_SIDE, None
    return min(common), common
