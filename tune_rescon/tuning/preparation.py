"""The data of a search, made ready before Ray starts: bad images end a search before it has begun."""

from __future__ import annotations

from tune_rescon.config import DatasetConfig
from tune_rescon.data import DatasetFacts, describe, open_dataset
from tune_rescon.spaces import CategoricalParameter, Space
from tune_rescon.tuning.options import RunOptions

__all__ = ["prepare_data"]


def prepare_data(space: Space, options: RunOptions) -> dict[str, DatasetFacts]:
    """Decode what this machine's cache does not hold yet; what each dataset is, by its name.

    Raises:
        DataError: images are missing, unreadable or too few.
    """
    facts = {}
    for dataset in _datasets(space):
        open_dataset(
            dataset,
            data_root=options.data_root,
            cache_root=options.cache_root,
            progress=options.show_progress,
        )
        facts[dataset.name] = describe(dataset, data_root=options.data_root)
    return facts


def _datasets(space: Space) -> tuple[DatasetConfig, ...]:
    """Every dataset a trial of the space may train on."""
    searched = space.parameters.get("dataset")
    names = searched.choices if isinstance(searched, CategoricalParameter) else (None,)
    return tuple(space.dataset_config(name) for name in names)
