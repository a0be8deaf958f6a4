"""A commented space file to begin with: every field, with its meaning and its default."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig, field_names
from tune_rescon.spaces.json_schema import field_descriptions
from tune_rescon.spaces.loading import load_space, parse_space, space_folder, yaml_text
from tune_rescon.spaces.sections import AutoResources, Constraints, Section
from tune_rescon.spaces.space import Space

__all__ = ["space_template"]

_WIDTH: Final = 100

#: Where the template expects the images, if the space names no folder.
_PHOTOS: Final = "photos/"

_HEAD: Final = """\
# yaml-language-server: $schema={schema}
#
# A search space. Try it with
#
#     tune-rescon search --space {name}.yaml --dry-run
#
# A line that begins with `#key:` has the default of a field: remove the `#` and change the value.
# Every other comment explains the line below it.
"""

#: The content of each section whose class has no description.
_SECTIONS: Final = {
    "dataset": "The images.",
    "fixed": "Hyperparameters that every trial shares.",
    "parameters": "Hyperparameters that are searched. Each is in `fixed` or here, not in both.",
    "initial": "Trials to run first, each with a value for every searched hyperparameter.",
}


def space_template(name: str, *, base: str = "folder") -> str:
    """Return the text of a space file that loads, and that has a line for every field.

    Args:
        name: the name of the space, and of its file without ``.yaml``.
        base: the shipped space whose values the file has.

    Raises:
        SpaceError: there is no such shipped space, or ``name`` is no name of a space.
    """
    needs = [f"dataset.path={_PHOTOS}"] if base == "folder" else []
    space = load_space(base, [*needs, f"name={name}", "description="])
    text = "\n".join([_HEAD.format(schema=space_folder() / "schema.json", name=name), *_lines(space), ""])
    parse_space(text, source=f"{name}.yaml")
    return text


def _lines(space: Space) -> Iterator[str]:
    for key in ("version", "name", "description"):
        yield from _field(key, getattr(space, key), Space.model_fields[key].description or "", is_set=True)
    yield from _section("dataset", _config_fields(space.dataset))
    for key in ("metric", "fidelity", "sampler", "scheduler", "budget"):
        yield from _section(key, _section_fields(getattr(space, key)))
    yield from _resources(space)
    yield from _constraints(space)
    yield from _section("fixed", _fixed_fields(space))
    yield from _heading("parameters")
    described = field_descriptions(TrialConfig)
    for key, parameter in space.parameters.items():
        value = parameter.model_dump(by_alias=True, exclude_unset=True)
        yield from _field(key, value, described[key], is_set=True, indent="  ")
    if space.initial:
        yield from _heading("initial")
        yield from (f"  - {_flow(row)}" for row in space.initial)


#: A field: its key, its value, what it means, and whether the file sets it.
_Field = tuple[str, Any, str, bool]


def _config_fields(dataset: DatasetConfig) -> Iterator[_Field]:
    described = field_descriptions(DatasetConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(DatasetConfig)}
    for key in field_names(DatasetConfig):
        value = getattr(dataset, key)
        yield key, value, described[key], key == "name" or value != defaults[key]


def _fixed_fields(space: Space) -> Iterator[_Field]:
    described = field_descriptions(TrialConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(TrialConfig)}
    for key in field_names():
        # The images are named in `dataset`.
        if key != "dataset" and key not in space.parameters:
            yield key, space.fixed.get(key, defaults[key]), described[key], key in space.fixed


def _section_fields(section: Section) -> Iterator[_Field]:
    for name, field in type(section).model_fields.items():
        value, is_set = getattr(section, name), name in section.model_fields_set
        plain = value.model_dump() if isinstance(value, Section) else value
        yield field.alias or name, plain, field.description or "", is_set


def _resources(space: Space) -> Iterator[str]:
    resources = space.resources_per_trial
    if not isinstance(resources, AutoResources):
        yield from _section("resources_per_trial", _section_fields(resources))
        return
    yield from _described(Space.model_fields["resources_per_trial"].description or "", resources)
    yield "resources_per_trial: auto"


def _constraints(space: Space) -> Iterator[str]:
    constraints = space.constraints
    if constraints.model_fields_set:
        yield from _section("constraints", _section_fields(constraints))
        return
    yield from _described(Constraints.__doc__ or "", constraints)
    yield "constraints: {}"


def _described(text: str, section: Section) -> Iterator[str]:
    """Yield comments about a section that the file does not spell out."""
    yield from ["", *_comment(f"{text} Or a section with these keys:")]
    for key, _, meaning, _ in _section_fields(section):
        yield from _comment(f"`{key}`: {meaning}", hanging="  ")


def _section(key: str, fields: Iterator[_Field]) -> Iterator[str]:
    yield from _heading(key)
    for name, value, meaning, is_set in fields:
        yield from _field(name, value, meaning, is_set=is_set, indent="  ")


def _heading(key: str) -> Iterator[str]:
    kind = Space.model_fields[key].annotation
    is_section = isinstance(kind, type) and issubclass(kind, Section)
    yield from ["", *_comment(_SECTIONS.get(key) or (kind.__doc__ or "" if is_section else "")), f"{key}:"]


def _field(key: str, value: Any, meaning: str, *, is_set: bool, indent: str = "") -> Iterator[str]:
    yield from _comment(meaning, indent=indent)
    yield f"{indent}{'' if is_set else '#'}{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line.

    >>> _flow({"type": "float", "low": 1e-05, "choices": (1, "off")})
    '{type: float, low: 1.0e-05, choices: [1, "off"]}'
    """
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    # A mapping of one plain value is written in braces, unless the value is quoted.
    return yaml_text({"value": value}).strip().removeprefix("{").removesuffix("}").removeprefix("value: ")


def _comment(text: str, *, indent: str = "", hanging: str = "") -> Iterator[str]:
    plain = " ".join(text.replace("``", "`").split())
    start = f"{indent}# "
    yield from textwrap.wrap(
        plain, _WIDTH, initial_indent=start, subsequent_indent=start + hanging, break_on_hyphens=False
    )
