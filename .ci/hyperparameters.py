"""Write docs/hyperparameters.md from the fields of TrialConfig and DatasetConfig, or check the page.

python .ci/hyperparameters.py [--check]
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tune_rescon.config import DatasetConfig, Rule, TrialConfig, field_names, field_rule

PAGE = Path(__file__).parents[1] / "docs" / "hyperparameters.md"

HEAD = """# Hyperparameters

Every parameter of a trial may be fixed (`fixed` in the space file, or `--set fixed.NAME=VALUE`) or searched
(`parameters`). `null` leaves a value unset. This page is generated from `tune_rescon/config.py`.

## Of a trial
"""

IMAGES = """
## Of the images (`dataset`)

`--set dataset.NAME=VALUE`; not searched. [Your own images](images.md) explains them.
"""


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_table(TrialConfig), IMAGES, *_table(DatasetConfig), ""])


def _table(kind: type) -> Iterator[str]:
    yield "| name | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    described = _attribute_docstrings(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name in field_names(kind):
        text = re.sub(r":\w+:`~?\.?([^`]*)`", r"`\1`", described.get(name, "")).replace("``", "`")
        text = text.replace("None", "null").replace("|", "\\|")
        yield f"| `{name}` | {_values(field_rule(name, kind))} | {_shown(defaults[name])} | {text} |"


def _attribute_docstrings(kind: type) -> dict[str, str]:
    """Return the string after each field, which is its documentation."""
    (node,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


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
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main() -> int:
    """Write or check the page; return the exit code."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is not current: run `.venv/bin/python .ci/hyperparameters.py`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
