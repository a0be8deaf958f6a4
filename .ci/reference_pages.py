"""Write the pages of docs/reference/ that are generated from the code, or check that they are current.

python .ci/reference_pages.py [--check]
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_rescon.config import DatasetConfig, Rule, TrialConfig, field_names, field_rule
from tune_rescon.models import count_params_and_macs, list_presets, resolve_network
from tune_rescon.spaces import Space
from tune_rescon.spaces.json_schema import editor_schema, field_descriptions

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

HYPERPARAMETERS = """# Hyperparameters

Every parameter of a trial may be fixed (`fixed` in the space file, or `--set fixed.NAME=VALUE`) or searched
(`parameters`). `null` leaves a value unset. This page is generated from `tune_rescon/config.py`.

## Of a trial

The groups: [network](#network), [optimisation](#optimisation),
[loss, classes and averages](#loss-classes-and-averages), [speed and memory](#speed-and-memory),
[images](#images)."""

#: Heading of each group of a trial's hyperparameters, by the first of its fields.
GROUPS = {
    "dataset": "Network",
    "batch_size": "Optimisation",
    "label_smoothing": "Loss, classes and averages",
    "precision": "Speed and memory",
    "normalize": "Images",
}

IMAGES = """
## Of the images (`dataset`)

`--set dataset.NAME=VALUE`; not searched. [Your own images](../howto/images.md) explains them.
"""

SPACE_FILE = """# Space file

The fields of a space file, section by section. [Space files](../howto/space-files.md) shows a whole one.
An editor that reads YAML schemas completes and checks the file if its first line is
`# yaml-language-server: $schema=PATH/schema.json`; `search_spaces/schema.json` is that schema. This page is
generated from the same fields.
"""

PRESETS = """# Presets

The networks that have a name, with their parameters and multiply-adds for ten classes. Fix one with
`--set fixed.preset=NAME`, or build one with `tune_rescon.build_network(NAME, num_classes=10)`. `tune-rescon
presets` prints the same table.

| preset | image size | parameters, millions | GMACs |
| --- | --- | --- | --- |
"""

#: Whole numbers up to this one are exact as floats.
EXACT = 2**53

#: Where the fields of a section are described, if not on the page itself.
ELSEWHERE = {
    "dataset": "[Hyperparameters](hyperparameters.md#of-the-images-dataset) lists its fields.",
    "fixed": "[Hyperparameters](hyperparameters.md#of-a-trial) lists the fields.",
    "parameters": (
        "Each is an [IntParameter](#intparameter), a [FloatParameter](#floatparameter) or a"
        " [CategoricalParameter](#categoricalparameter), by its `type`."
        " [Hyperparameters](hyperparameters.md#of-a-trial) lists the names."
    ),
    "initial": "A list of rows, `{depth: 56, learning_rate: 0.1}` for example.",
}


def pages() -> dict[str, str]:
    """Return the text of each page, by file name."""
    hyperparameters = [
        HYPERPARAMETERS,
        *_fields(TrialConfig, GROUPS),
        IMAGES,
        *_fields(DatasetConfig, {}),
        "",
    ]
    return {
        "hyperparameters.md": "\n".join(hyperparameters),
        "space-file.md": "\n".join([SPACE_FILE, *_sections(), ""]),
        "presets.md": PRESETS + "\n".join([*_presets(), ""]),
    }


def _fields(kind: type, groups: Mapping[str, str]) -> Iterator[str]:
    """Yield a table of the fields, or one for each group under its heading."""
    described = field_descriptions(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    names = field_names(kind)
    assert groups.keys() <= set(names), "a group begins with a field that does not exist"
    if not groups:
        yield from _head()
    for name in names:
        if name in groups:
            yield f"\n### {groups[name]}\n"
            yield from _head()
        yield _row(name, _values(field_rule(name, kind)), _shown(defaults[name]), described[name])


def _sections() -> Iterator[str]:
    schema = editor_schema()
    definitions = schema["$defs"]
    plain = {name: field for name, field in schema["properties"].items() if not _definition(field)}
    yield "## At the top\n"
    yield from _head()
    names = Space.keys()
    for name in names:
        if name in plain and name not in ELSEWHERE:
            yield _property(name, plain[name], schema["required"])
    for name in names:
        field = schema["properties"][name]
        kind = "" if name in ELSEWHERE else _definition(field)
        if name not in ELSEWHERE and not kind:
            continue
        yield f"\n## `{name}`\n"
        texts = [definitions[kind]["description"]] if kind else []
        yield _one_line(*texts, field.get("description", ""), ELSEWHERE.get(name, ""))
        if kind:
            yield ""
            yield from _table(definitions[kind])
    for kind in ("Limit", "Latency", "IntParameter", "FloatParameter", "CategoricalParameter", "When"):
        yield f"\n## {kind}\n"
        yield definitions[kind]["description"] + "\n"
        yield from _table(definitions[kind])


def _one_line(*texts: str) -> str:
    return " ".join(" ".join(text.split()) for text in texts if text).replace("``", "`")


def _definition(field: Mapping[str, Any]) -> str:
    """Return the name of the section that a field is, or may be; empty if it is a plain value."""
    of = [one["$ref"] for one in (field, *field.get("anyOf", ())) if "$ref" in one]
    return str(of[0]).rpartition("/")[2] if of else ""


def _table(definition: Mapping[str, Any]) -> Iterator[str]:
    yield from _head()
    for name, field in definition["properties"].items():
        yield _property(name, field, definition.get("required", ()))


def _property(name: str, field: Mapping[str, Any], required: Any) -> str:
    default = "required" if name in required else _shown(field.get("default"))
    return _row(name, _accepted(field), default, _one_line(field.get("description", "")))


def _accepted(field: Mapping[str, Any]) -> str:
    """Return in words which values a property of a JSON schema accepts."""
    if "examples" in field:
        return ", ".join(f"`{value}`" for value in field["examples"])
    if "anyOf" in field:
        return ", ".join(_accepted(one) for one in field["anyOf"])
    if "$ref" in field:
        kind = _definition(field)
        return f"[{kind}](#{kind.lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kinds = {"integer": "whole number", "string": "text", "array": "list", "null": "`null`"}
    kinds |= {"boolean": "`true`, `false`", "object": "fields"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    # A bound that only keeps whole numbers exact says nothing to a reader.
    field = {key: value for key, value in field.items() if key not in signs or abs(value) < EXACT}
    limits = " and ".join(f"{sign} {field[key]}" for key, sign in signs.items() if key in field)
    return f"{kinds.get(field.get('type', ''), field.get('type', 'any'))} {limits}".strip()


def _presets() -> Iterator[str]:
    for name in list_presets():
        spec = resolve_network(TrialConfig(preset=name), classes=10, in_channels=3)
        cost = count_params_and_macs(spec)
        yield f"| `{name}` | {spec.image_size} | {cost.parameters / 1e6:.2f} | {cost.macs / 1e9:.3f} |"


def _head() -> Iterator[str]:
    yield "| name | values | default | meaning |"
    yield "| --- | --- | --- | --- |"


def _row(name: str, values: str, default: str, meaning: str) -> str:
    return f"| `{name}` | {values} | {default} | {meaning.replace('|', chr(92) + '|')} |"


def _values(rule: Rule) -> str:
    if rule.choices:
        return ", ".join(f"`{choice}`" for choice in rule.choices)
    words = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true`, `false`",
        tuple: "whole numbers",
    }
    kinds = [words[kind] for kind in rule.kinds if kind in words]
    bounds = []
    if rule.low > -math.inf:
        bounds.append(f"{'>' if rule.open_low else '>='} {rule.low:g}")
    if rule.high < math.inf:
        bounds.append(f"{'<' if rule.open_high else '<='} {rule.high:g}")
    optional = [] if type(None) not in rule.kinds else ["`null`"]
    limits = " and ".join(bounds)
    return ", ".join([f"{kinds[0]} {limits}".strip(), *optional])


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if value == "":
        return "empty"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> int:
    """Write or check the pages; return the exit code."""
    code = 0
    for name, text in pages().items():
        path = FOLDER / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{name} is not current: run `.venv/bin/python .ci/reference_pages.py`")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
