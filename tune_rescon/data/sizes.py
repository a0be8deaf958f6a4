"""How large a folder's images are, from the headers of a few, and how large the cache keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tune_rescon.data.decode import BadImageError, probe_size
from tune_rescon.data.opening import without_remarks

__all__ = ["USUAL_STORE_SIZE", "common_size", "stored_size"]

#: Side of the cache's squares, pixels, where a dataset gives no ``store_size``.
USUAL_STORE_SIZE: Final = 256

_PROBED = 32


def common_size(source: Path, names: Sequence[str]) -> tuple[int, int] | None:
    """(width, height) that images spread over the listing share; None if they differ or none can be read.

    A judgement from 32 headers: the decoder checks every image.
    """
    step = max(1, len(names) // _PROBED)
    sizes = set()
    with without_remarks():
        for name in names[::step]:
            try:
                sizes.add(probe_size(source, name))
            except BadImageError:
                continue
            if len(sizes) > 1:
                return None
    return sizes.pop() if sizes else None


def stored_size(
    common: tuple[int, int] | None, store_size: int | None, resize: str = "crop"
) -> tuple[int, tuple[int, int] | None]:
    """Side of the cache's squares, and the size every image must then have (None: any).

    Images all of one smaller size are kept at it: enlarging them would add nothing.

    Args:
        common: width and height of all images, pixels; None: they differ.
        store_size: the largest side, pixels; None: :data:`USUAL_STORE_SIZE`.
        resize: how pictures become squares: a ``pad`` keeps the longer side, the others the shorter.

    >>> stored_size((48, 32), None), stored_size((48, 32), None, "pad")
    ((32, (48, 32)), (48, (48, 32)))
    >>> stored_size((1920, 1080), None), stored_size(None, None), stored_size((32, 32), 64)
    ((256, None), (256, None), (32, (32, 32)))
    """
    side = USUAL_STORE_SIZE if store_size is None else store_size
    if common is None:
        return side, None
    native = max(common) if resize == "pad" else min(common)
    return (native, common) if native <= side else (side, None)
