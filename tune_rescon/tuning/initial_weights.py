"""The weights that a space's trials begin with, looked at before Ray starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetFacts, is_url
from tune_rescon.models import resolve_network
from tune_rescon.spaces import CategoricalParameter, Space, corners

if TYPE_CHECKING:
    from tune_rescon.training.weights import InitialWeights

__all__ = ["check_weights", "read_weights", "with_absolute_weights"]

_NAME: Final = "init_from"

#: Fields that decide which weights a trial begins with, and of which network.
_FIELDS: Final = (
    *("dataset", _NAME, "preset", "layout", "depth", "width", "image_size"),
    *("attention", "attention_learning", "mask", "added_reference"),
)


def with_absolute_weights(space: Space) -> Space:
    """``space`` with an absolute path wherever it says ``init_from``: workers run elsewhere."""
    parameters = {name: _absolute_choices(name, parameter) for name, parameter in space.parameters.items()}
    rows = tuple(_absolute_value(row) for row in space.initial)
    changed = {"fixed": _absolute_value(space.fixed), "parameters": parameters, "initial": rows}
    return space.model_copy(update=changed)


def _absolute_value(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _absolute(value) if name == _NAME else value for name, value in values.items()}


def _absolute_choices(name: str, parameter: Any) -> Any:
    if name != _NAME:
        return parameter
    return parameter.model_copy(update={"choices": tuple(map(_absolute, parameter.choices))})


def _absolute(source: str | None) -> str | None:
    return source if source is None or is_url(source) else str(Path(source).expanduser().resolve())


def read_weights(space: Space) -> dict[str, InitialWeights]:
    """The files that trials of ``space`` begin with, by path or URL.

    Raises:
        StorageError, NetworkError: one is missing, damaged, or something else's.
    """
    searched = space.parameters.get(_NAME)
    choices = searched.choices if isinstance(searched, CategoricalParameter) else (space.fixed.get(_NAME),)
    sources = [source for source in choices if source is not None]
    if not sources:
        return {}
    # Imported here: it takes torch, which the driver of most searches does without.
    from tune_rescon.training.weights import read_initial

    return {source: read_initial(source) for source in sources}


def check_weights(
    space: Space, weights: Mapping[str, InitialWeights], facts: Mapping[str, DatasetFacts]
) -> None:
    """Check that every network that ``space`` can ask for is that of its weights.

    Raises:
        NetworkError: one is another; says which trials', in what, and what to choose.
    """
    if not weights:
        return
    for chosen in corners(space.parameters, _FIELDS):
        config = TrialConfig.from_dict({**space.fixed, **chosen})
        if config.init_from is None:
            continue
        images = facts[config.dataset or space.dataset.name]
        spec = resolve_network(config, classes=images.classes, in_channels=images.channels)
        words = ", ".join(f"{name} {value}" for name, value in chosen.items() if name != _NAME)
        where = f"{_NAME}, with {words}" if words else _NAME
        weights[config.init_from].check_fits(spec, where=where)
