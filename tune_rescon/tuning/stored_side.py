"""How large the cache keeps the pictures of a folder: as large as the search's largest network sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import USUAL_STORE_SIZE, DatasetFacts
from tune_rescon.errors import NetworkError
from tune_rescon.models import resolve_network
from tune_rescon.spaces import Space, corners

__all__ = ["cache_words", "largest_image_size", "with_store_size"]

#: Fields that decide the side of a network's input.
_FIELDS: Final = ("preset", "layout", "depth", "image_size")


def with_store_size(space: Space, recorded: Space | None) -> Space:
    """``space`` with ``dataset.store_size``, where it has a path and gives none itself.

    Args:
        space: what is searched.
        recorded: the newest space in the record of a resumed search, whose images must stay as they were;
            None: a new search.
    """
    dataset = space.dataset
    if dataset.path is None or dataset.store_size is not None:
        return space
    # The record of an earlier version has None, which is the side that its trials had.
    size = largest_image_size(space) if recorded is None else recorded.dataset.store_size
    return space.model_copy(update={"dataset": dataclasses.replace(dataset, store_size=size)})


def largest_image_size(space: Space) -> int:
    """The largest side of a network's input that a trial of ``space`` may ask for, pixels."""
    rows = [{}, *corners(space.parameters, _FIELDS), *space.initial]
    return max(_image_size({**space.fixed, **row}) for row in rows)


def cache_words(space: Space, facts: DatasetFacts) -> list[str]:
    """What people should know of a folder's cache: its size, and whether pictures will be enlarged."""
    if facts.cache_bytes is None:
        return []
    squares = f"{facts.stored_images} squares of {facts.stored_side} pixels"
    lines = [
        f"the cache keeps {squares}: {_size(facts.cache_bytes)} of disk on each node, mapped into memory"
    ]
    kept = space.dataset.store_size or USUAL_STORE_SIZE
    largest = largest_image_size(space)
    if facts.stored_side == kept < largest:
        lines.append(
            f"networks of image_size {largest} will see these squares enlarged: `--set"
            f" dataset.store_size={largest}` keeps the detail, in a new search"
        )
    return lines


def _image_size(values: Mapping[str, Any]) -> int:
    chosen = {name: value for name, value in values.items() if name in _FIELDS}
    try:
        spec = resolve_network(TrialConfig.from_dict(chosen), classes=2, in_channels=3)
    except NetworkError:
        # A combination that no trial can have; what a space may ask for is judged where it is read.
        return 0
    return spec.image_size


def _size(count: int) -> str:
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
