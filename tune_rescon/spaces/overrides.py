"""``--set KEY=VALUE``: which field a key means, and how it changes the document of a space file."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Union, get_args, get_origin

from tune_rescon.config import DatasetConfig, TrialConfig, field_names, field_rule
from tune_rescon.spaces.parameters import is_among
from tune_rescon.spaces.sections import Section
from tune_rescon.spaces.space import Space
from tune_rescon.spaces.yaml_document import Document, SourceLine, read_document, shown

__all__ = ["apply_overrides", "full_keys"]

#: The section -> the configuration whose fields are its keys.
_CONFIGS: Final = {"dataset": DatasetConfig, "fixed": TrialConfig}

#: The texts that mean null, for a key that accepts null.
_NULLS: Final = ("", "null", "Null", "NULL")

_RESOURCES: Final = "resources_per_trial"

#: The keys that only the scheduler asha reads.
_OF_ASHA: Final = ("scheduler.variant", "scheduler.reduction_factor")


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Change the document by each ``KEY=VALUE``, in order; problems are kept in the document.

    A key is a dotted key of the file, or a field's own name: ``learning_rate`` is ``fixed.learning_rate``.
    If the field is searched, a value pins it: it is fixed from then on. See :func:`full_keys`. A key that
    only the scheduler asha reads changes ``scheduler.type: auto`` to asha.
    """
    was_auto = document.value.get(_RESOURCES) == "auto"
    for override in overrides:
        _override(document, override)
    resources = document.value.get(_RESOURCES)
    if was_auto and isinstance(resources, dict):
        _check_replaced(document, resources)


def _override(document: Document, override: str) -> None:
    given, equals, value = override.partition("=")
    if not equals or not all(given.split(".")):
        hint = "An example: --set fidelity.max=27."
        place, rule = SourceLine(0, f"--set {override}"), "--set takes KEY=VALUE, with a dotted key"
        document.add_problem(place, (), rule, got=shown(override), hint=hint)
        return
    place = SourceLine(0, f"--set {given}")
    keys = full_keys(given, _searched(document))
    if len(keys) > 1:
        document.add_problem(place, (), f"{given!r} must be given by its full key", got=" or ".join(keys))
        return
    key = keys[0] if keys else given
    name = key.rpartition(".")[2]
    if key == f"parameters.{name}" and "." not in given:
        # A parameter's own section replaces it; any other value pins it.
        read = read_document(value, place).value
        if not isinstance(read, dict):
            _pin(document, name, value, place)
            return
    if key in _OF_ASHA:
        scheduler = document.value.get("scheduler")
        if isinstance(scheduler, dict) and scheduler.get("type") == "auto":
            scheduler["type"] = "asha"
    if key.startswith(f"{_RESOURCES}.") and document.value.get(_RESOURCES) == "auto":
        document.value[_RESOURCES] = {}
    _set(document, key, value, place)


def _set(document: Document, key: str, typed: str, place: SourceLine) -> None:
    """Set ``key`` to the YAML ``typed``, or to the text itself if the key accepts only text."""
    kinds = set(_kinds(key.split(".")))
    is_quoted = len(typed) > 1 and typed[0] == typed[-1] and typed[0] in "'\""
    if is_quoted or str not in kinds or kinds - {str, type(None)}:
        document.override(key, read_document(typed, place))
        return
    text = None if type(None) in kinds and typed in _NULLS else typed
    document.override(key, Document(top=place, value=text, places={(): place}))


def full_keys(key: str, searched: Iterable[str]) -> list[str]:
    """Return the dotted keys of the file that ``key`` may mean; empty if it is not a field's own name.

    Args:
        key: as it is typed. A key that begins with a section is complete.
        searched: the fields that the space searches.

    >>> full_keys("learning_rate", ["depth"]), full_keys("depth", ["depth"])
    (['fixed.learning_rate'], ['parameters.depth'])
    >>> full_keys("depth.choices", ["depth"]), full_keys("fidelity.max", []), full_keys("hours", [])
    (['parameters.depth.choices'], [], ['budget.hours'])
    >>> full_keys("type", [])
    ['sampler.type', 'scheduler.type']
    """
    first, dot, rest = key.partition(".")
    if first in Space.model_fields:
        return []
    found = []
    if first in searched:
        found.append(f"parameters.{first}")
    elif first in field_names():
        found.append(f"fixed.{first}")
    found += [f"{section}.{first}" for section, keys in _section_keys() if first in keys]
    return [f"{one}{dot}{rest}" for one in found]


def _section_keys() -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the sections whose keys a person may give without the section, and their keys."""
    yield "dataset", field_names(DatasetConfig)
    for name, field in Space.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation.keys()


def _searched(document: Document) -> Mapping[str, Any]:
    parameters = document.value.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _pin(document: Document, name: str, value: str, place: SourceLine) -> None:
    """Fix a field that was searched.

    A parameter that depends on the pinned one loses its condition, or is removed. A row of ``initial`` with
    the same value no longer names the field.
    """
    parameters = dict(_searched(document))
    del parameters[name]
    _set(document, f"fixed.{name}", value, place)
    fixed = document.value["fixed"]
    pinned = fixed.get(name) if isinstance(fixed, dict) else None
    document.value["parameters"] = _after_pinning(parameters, name, pinned)
    rows = document.value.get("initial")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and name in row and is_among(pinned, [row[name]]):
            del row[name]


def _after_pinning(parameters: Mapping[str, Any], name: str, pinned: Any) -> dict[str, Any]:
    """Return the other parameters once ``name`` has the value ``pinned`` in every trial."""
    kept: dict[str, Any] = {}
    gone: list[str] = []
    for other, parameter in parameters.items():
        when = parameter.get("when") if isinstance(parameter, dict) else None
        parent = when.get("parameter") if isinstance(when, dict) else None
        values = when.get("in") if isinstance(when, dict) else None
        if parent == name and isinstance(values, list) and is_among(pinned, values):
            kept[other] = {key: inner for key, inner in parameter.items() if key != "when"}
        elif parent == name or parent in gone:
            gone.append(other)
        else:
            kept[other] = parameter
    return kept


def _check_replaced(document: Document, resources: Mapping[str, Any]) -> None:
    """Check that a section that replaces ``auto`` has ``cpu`` and ``gpu``, which is 0 by default."""
    if {"cpu", "gpu"} <= resources.keys() or not resources:
        return
    first = document.place((_RESOURCES, *list(resources)[:1]))
    if str(first) != f"--set {_RESOURCES}":
        rule = f"`{_RESOURCES}: auto` must be replaced as a whole"
        hint = f"Give both: --set {_RESOURCES}.cpu=1 --set {_RESOURCES}.gpu=0."
        document.add_problem(first, (_RESOURCES,), rule, got=", ".join(resources), hint=hint)


def _kinds(steps: list[str]) -> Iterable[Any]:
    """Return the types of a key's values; empty for an unknown key."""
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
    # The first argument of Annotated is the type.
    return _types(get_args(annotation)[0]) if hasattr(annotation, "__metadata__") else [annotation]
