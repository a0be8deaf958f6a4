"""Which keys of a space file hold text, so that ``--set`` takes it as it is typed.

YAML would cut ``my photos #1`` at the comment, and read ``2024`` as a number.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Final, Literal, Union, get_args, get_origin

from tune_rescon.config import DatasetConfig, TrialConfig, field_names, field_rule
from tune_rescon.spaces.section import Section
from tune_rescon.spaces.space import Space

__all__ = ["typed_text"]

#: Sections whose keys are fields of a configuration.
_CONFIGS: Final = {"dataset": DatasetConfig, "fixed": TrialConfig}

_NULLS: Final = ("", "null", "Null", "NULL")


def typed_text(key: str, typed: str) -> str | None:
    """What ``--set KEY=TYPED`` means where the key holds nothing but text.

    Raises:
        LookupError: the key may hold something else, or the text is quoted: YAML's rules count.
    """
    kinds = set(_kinds(key.split(".")))
    is_quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
    if is_quoted or str not in kinds or kinds - {str, type(None)}:
        raise LookupError(key)
    return None if type(None) in kinds and typed in _NULLS else typed


def _kinds(steps: list[str]) -> Iterable[Any]:
    """The types of a key's values; none for an unknown key."""
    if len(steps) == 2 and steps[0] in _CONFIGS:
        config = _CONFIGS[steps[0]]
        return field_rule(steps[1], config).kinds if steps[1] in field_names(config) else ()
    section: Any = Space
    for step in steps:
        is_section = isinstance(section, type) and issubclass(section, Section)
        fields = section.model_fields if is_section else {}
        if step not in fields:
            return ()
        section = fields[step].annotation
    return _types(section)


def _types(annotation: Any) -> Iterable[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for inner in get_args(annotation) for kind in _types(inner)]
    if get_origin(annotation) is Literal:
        return [type(value) for value in get_args(annotation)]
    # Annotated: its first argument is the type.
    return _types(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else [annotation]
