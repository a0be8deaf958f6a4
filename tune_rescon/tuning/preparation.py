"""The data of a search, made ready before Ray starts: bad images end a search before it has begun."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tune_rescon.data import DatasetFacts, describe, open_dataset
from tune_rescon.spaces import Space
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.pricing import datasets_of

__all__ = ["anchored", "prepare_data"]


def anchored(space: Space) -> Space:
    """``space`` with an absolute ``dataset.path``: workers run elsewhere, and so may whoever resumes."""
    if space.dataset.path is None:
        return space
    absolute = dataclasses.replace(space.dataset, path=str(Path(space.dataset.path).resolve()))
    return space.model_copy(update={"dataset": absolute})


def prepare_data(space: Space, options: RunOptions) -> dict[str, DatasetFacts]:
    """Decode what this machine's cache does not hold yet; what each dataset is, by its name.

    Raises:
        DataError: images are missing, unreadable or too few.
    """
    facts = {}
    for dataset in datasets_of(space):
        open_dataset(
            dataset,
            data_root=options.data_root,
            cache_root=options.cache_root,
            progress=options.show_progress,
        )
        facts[dataset.name] = describe(dataset, data_root=options.data_root)
    return facts
