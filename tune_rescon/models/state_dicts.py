"""State dicts in what a training script has saved: dicts of tensors at any depth, and where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

__all__ = ["StateDict", "describe_value", "find_state_dicts"]

#: Dicts in dicts that are looked through.
_DEEPEST: Final = 5

#: Keys that a message spells out before it only counts them.
_NAMED: Final = 6


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors by name. ``place`` is the path of keys to them, "" for the outermost dict."""

    place: str
    tensors: Mapping[str, Tensor]


def find_state_dicts(value: object, *, place: str = "", depth: int = 0) -> Iterator[StateDict]:
    """The dicts in ``value``, itself included, that hold tensors by name; a module's is its state dict.

    What else a dict holds (an epoch, an optimizer's numbered states) is left out.

    >>> import torch
    >>> saved = {"epoch": 9, "model": {"net": {"weight": torch.ones(1)}}}
    >>> [(found.place, list(found.tensors)) for found in find_state_dicts(saved)]
    [('model.net', ['weight'])]
    """
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    tensors = {key: one for key, one in value.items() if isinstance(key, str) and isinstance(one, Tensor)}
    if tensors:
        yield StateDict(place=place, tensors=tensors)
    for key, inner in value.items():
        if isinstance(key, str):
            yield from find_state_dicts(inner, place=f"{place}.{key}" if place else key, depth=depth + 1)


def describe_value(value: object) -> str:
    """What a value is, for a message: its type, and the keys of a dict.

    >>> describe_value(None), describe_value({"epoch": 9, "arch": "a"}), describe_value([1])
    ('None', 'a dict of epoch, arch', 'a list')
    """
    if value is None:
        return "None"
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    if not value:
        return "an empty dict"
    more = f" and {len(value) - _NAMED} more" if len(value) > _NAMED else ""
    return f"a dict of {', '.join(str(key) for key in list(value)[:_NAMED])}{more}"
