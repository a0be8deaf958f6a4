"""Describe the space file: the JSON schema for editors, and a commented file to begin with.

Both are generated from the models. The description of a field is the string below it in the code.

``python -m tune_rescon.spaces.json_schema`` writes the schema beside the space files, whose first lines refer
to it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tune_rescon.config import DatasetConfig, Rule, TrialConfig, field_names, field_rule
from tune_rescon.data import list_datasets
from tune_rescon.metric_names import BY_CLASS, CLASS_METRICS, EXTRA_METRICS, objective_names
from tune_rescon.models import list_presets
from tune_rescon.spaces.loading import load_space, parse_space, space_folder, yaml_text
from tune_rescon.spaces.sections import AutoResources, Constraints, Section
from tune_rescon.spaces.space import Space

__all__ = ["editor_schema", "field_descriptions", "main", "schema_text", "space_template"]


#: JSON's name of a type.
_TYPES: Final = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    tuple: "array",
    type(None): "null",
}
#: The kinds of parameter, besides the categorical, by which a field of a type can be searched.
_PARAMETERS: Final = {int: ("IntParameter",), float: ("IntParameter", "FloatParameter")}


def editor_schema() -> dict[str, Any]:
    """Return the schema of the models, with the rules of the fields for which the models accept any value."""
    schema = Space.model_json_schema()
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    properties = schema["properties"]
    properties["dataset"] = _section(DatasetConfig, required=("name",))
    properties["dataset"]["properties"]["name"]["enum"] = list(list_datasets())
    metric = schema["$defs"]["Metric"]
    own = {"pattern": "^[A-Za-z_0-9.]+:[A-Za-z_0-9]+$"}
    of_class = {"pattern": f"^({'|'.join(CLASS_METRICS)})/.+$"}
    metric["properties"]["log"]["items"] = {"anyOf": [{"enum": [*EXTRA_METRICS, *BY_CLASS]}, of_class, own]}
    metric["properties"]["name"]["examples"] = objective_names()
    # A function in `log` is an objective too.
    metric["if"] = {"properties": {"log": {"contains": own}}, "required": ["log"]}
    metric["else"] = {"properties": {"name": {"anyOf": [{"enum": objective_names()}, of_class]}}}
    values = _section(TrialConfig)
    values["properties"]["dataset"]["enum"] = list(list_datasets())
    values["properties"]["preset"]["enum"] = [None, *list_presets()]
    schema["$defs"]["Values"] = values
    properties["fixed"] |= {"$ref": "#/$defs/Values"}
    properties["initial"]["items"] = {"$ref": "#/$defs/Values"}
    properties["parameters"] |= {
        "properties": _parameters(values["properties"]),
        "additionalProperties": False,
    }
    return schema


#: A cross-reference of Sphinx. Plain text has only its target.
_ROLE: Final = re.compile(r":\w+:`~?\.?([^`]*)`")


def field_descriptions(kind: type) -> dict[str, str]:
    """Return the description of each field of a class, as plain text with `code` in single backquotes.

    A space file writes ``null`` for None, so the descriptions do as well.

    >>> from tune_rescon.config import TrialConfig
    >>> field_descriptions(TrialConfig)["ema_decay"]
    'Decay per step of the averaged weights, which are the ones validated; 0: no averaging.'
    """
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id: _plain(text.value.value)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _plain(text: str) -> str:
    plain = _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
    return re.sub(r"\bNone\b", "null", plain)


def schema_text() -> str:
    """Return the text of ``schema.json``."""
    return json.dumps(editor_schema(), indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write ``schema.json`` beside the space files."""
    path = space_folder() / "schema.json"
    path.write_text(schema_text(), encoding="utf-8")
    print(path)


def _section(kind: type, *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    described = field_descriptions(kind)
    properties = {
        name: {**_value(field_rule(name, kind)), "description": described[name]} for name in field_names(kind)
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _value(rule: Rule) -> dict[str, Any]:
    """Return the values that a rule of config accepts, as a JSON schema."""
    types = [_TYPES[kind] for kind in rule.kinds]
    limits: dict[str, Any] = {}
    if math.isfinite(rule.low):
        limits["exclusiveMinimum" if rule.open_low else "minimum"] = rule.low
    if math.isfinite(rule.high):
        limits["exclusiveMaximum" if rule.open_high else "maximum"] = rule.high
    if tuple in rule.kinds:
        limits = {"items": {"type": "integer", **limits}}
    if rule.choices:
        limits["enum"] = list(rule.choices)
    return {"type": types if len(types) > 1 else types[0], **limits}


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    """Return, for each field, the kinds of parameter by which it can be searched."""
    return {name: {"oneOf": _kinds(name, value)} for name, value in values.items()}


def _kinds(name: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    numbers = [model for kind in field_rule(name).kinds for model in _PARAMETERS.get(kind, ())]
    choices = {"properties": {"choices": {"items": value}}}
    categorical = {"allOf": [{"$ref": "#/$defs/CategoricalParameter"}, choices]}
    return [*({"$ref": f"#/$defs/{model}"} for model in numbers), categorical]


#: Width of a line, in characters.
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
    text = "\n".join(
        [_HEAD.format(schema=space_folder() / "schema.json", name=name), *_template_lines(space), ""]
    )
    parse_space(text, source=f"{name}.yaml")
    return text


def _template_lines(space: Space) -> Iterator[str]:
    for key in ("version", "name", "description"):
        yield from _field_lines(
            key, getattr(space, key), Space.model_fields[key].description or "", is_set=True
        )
    yield from _section_lines("dataset", _dataset_fields(space.dataset))
    for key in ("metric", "fidelity", "sampler", "scheduler", "budget"):
        yield from _section_lines(key, _section_fields(getattr(space, key)))
    resources, constraints = space.resources_per_trial, space.constraints
    if isinstance(resources, AutoResources):
        text = Space.model_fields["resources_per_trial"].description or ""
        yield from _short_section("resources_per_trial", resources, text=text, value="auto")
    else:
        yield from _section_lines("resources_per_trial", _section_fields(resources))
    if constraints.model_fields_set:
        yield from _section_lines("constraints", _section_fields(constraints))
    else:
        yield from _short_section("constraints", constraints, text=Constraints.__doc__ or "", value="{}")
    yield from _section_lines("fixed", _fixed_fields(space))
    yield from _heading("parameters")
    described = field_descriptions(TrialConfig)
    for key, parameter in space.parameters.items():
        value = parameter.model_dump(by_alias=True, exclude_unset=True)
        yield from _field_lines(key, value, described[key], is_set=True, indent="  ")
    if space.initial:
        yield from _heading("initial")
        yield from (f"  - {_flow(row)}" for row in space.initial)


#: A field: its key, its value, what it means, and whether the file sets it.
_Field = tuple[str, Any, str, bool]


def _dataset_fields(dataset: DatasetConfig) -> Iterator[_Field]:
    described = field_descriptions(DatasetConfig)
    for field in dataclasses.fields(DatasetConfig):
        key, value = field.name, getattr(dataset, field.name)
        yield key, value, described[key], key == "name" or value != field.default


def _fixed_fields(space: Space) -> Iterator[_Field]:
    described = field_descriptions(TrialConfig)
    for field in dataclasses.fields(TrialConfig):
        key = field.name
        # The images are named in `dataset`.
        if key != "dataset" and key not in space.parameters:
            yield key, space.fixed.get(key, field.default), described[key], key in space.fixed


def _section_fields(section: Section) -> Iterator[_Field]:
    for name, field in type(section).model_fields.items():
        value, is_set = getattr(section, name), name in section.model_fields_set
        plain = value.model_dump() if isinstance(value, Section) else value
        yield field.alias or name, plain, field.description or "", is_set


def _short_section(key: str, section: Section, *, text: str, value: str) -> Iterator[str]:
    """Yield a section as ``value`` on one line, below a comment with ``text`` and the keys it could have."""
    yield from ["", *_comment(f"{text} Or a section with these keys:")]
    for name, _, meaning, _ in _section_fields(section):
        yield from _comment(f"`{name}`: {meaning}", hanging="  ")
    yield f"{key}: {value}"


def _section_lines(key: str, fields: Iterator[_Field]) -> Iterator[str]:
    yield from _heading(key)
    for name, value, meaning, is_set in fields:
        yield from _field_lines(name, value, meaning, is_set=is_set, indent="  ")


def _heading(key: str) -> Iterator[str]:
    kind = Space.model_fields[key].annotation
    is_section = isinstance(kind, type) and issubclass(kind, Section)
    yield from ["", *_comment(_SECTIONS.get(key) or (kind.__doc__ or "" if is_section else "")), f"{key}:"]


def _field_lines(key: str, value: Any, meaning: str, *, is_set: bool, indent: str = "") -> Iterator[str]:
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


if __name__ == "__main__":
    main()
