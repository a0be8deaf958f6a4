"""The JSON schema by which an editor completes and checks a space file, and the meaning of each field.

Both are generated from the models: the meaning of a field is the string below it in the code.

``python -m tune_rescon.spaces.json_schema`` writes it beside the space files, whose first lines refer to it.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import textwrap
from typing import Any, Final

from tune_rescon.config import DatasetConfig, Rule, TrialConfig, field_names, field_rule
from tune_rescon.data import list_datasets
from tune_rescon.metric_names import BY_CLASS, CLASS_METRICS, EXTRA_METRICS, objective_names
from tune_rescon.models import list_presets
from tune_rescon.spaces.loading import space_folder
from tune_rescon.spaces.space import Space

__all__ = [
    "editor_schema",
    "field_descriptions",
    "main",
    "schema_text",
]


_TYPES: Final = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    tuple: "array",
    type(None): "null",
}
_PARAMETERS: Final = {int: ("IntParameter",), float: ("IntParameter", "FloatParameter")}


def editor_schema() -> dict[str, Any]:
    """Return the schema: the models' schema, with the rule of each field for which they accept any value."""
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


#: A cross-reference of Sphinx, whose target is all that a reader of plain text needs.
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


if __name__ == "__main__":
    main()
