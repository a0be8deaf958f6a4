"""A launcher file against the schema that Ray ships, in this package's words.

The schema is read, Ray is not imported: that takes seconds.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from tune_rescon.errors import explain, unknown_name
from tune_rescon.launching.document import Steps, dotted

__all__ = ["schema_problems"]


def schema_problems(value: Any) -> Iterator[tuple[str, Steps, str]]:
    """What Ray's schema refuses: the rule (``unknown-key`` or ``ray-schema``), where, what to tell."""
    schema = _schema()
    if schema is None:
        yield "ray-schema", (), explain("is checked against Ray's schema", got="no Ray that has one")
        return
    errors = sorted(Draft7Validator(schema).iter_errors(value), key=lambda error: [*map(str, error.path)])
    for error in errors:
        steps: Steps = tuple(error.absolute_path)
        where = dotted(steps)
        if error.validator == "additionalProperties":
            known = error.schema["properties"]
            for key in error.instance:
                if key not in known:
                    below = (*steps, key)
                    yield "unknown-key", below, unknown_name("key", key, known, where=dotted(below))
        elif error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            yield "ray-schema", steps, explain("is missing", where=dotted((*steps, missing)))
        elif error.validator == "type":
            rule = f"must be of type {error.validator_value}"
            yield "ray-schema", steps, explain(rule, got=repr(error.instance), where=where)
        else:
            yield "ray-schema", steps, explain(f"Ray's schema refuses it: {error.message}", where=where)


def _schema() -> Mapping[str, Any] | None:
    ray = importlib.util.find_spec("ray")
    for folder in (ray.submodule_search_locations or ()) if ray else ():
        path = Path(folder) / "autoscaler" / "ray-schema.json"
        if path.is_file():
            schema: Mapping[str, Any] = json.loads(path.read_text())
            return schema
    return None
