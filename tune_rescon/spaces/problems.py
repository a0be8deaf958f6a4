"""What is wrong in a space file, before anyone knows on which line it stands.

A :class:`Problem` travels as one line error inside pydantic's ``ValidationError``: so the shape of a section
and the rules between sections come out of one place, at once, each with its path in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from tune_rescon.errors import explain

__all__ = ["A_SECTION", "Path", "Problem", "dotted", "problems_in", "quoting", "raise_problems", "shown"]

#: Keys and list positions from the top of the file: ``("parameters", "depth", "choices", 1)``.
Path = tuple[str | int, ...]

#: The rule a value breaks that should hold keys.
A_SECTION: Final = "must be a section (`key: value` lines)"

_OURS: Final = "space_rule"
_LONGEST_SHOWN: Final = 80

#: Another tool's word where a value of ours belongs.
_FOREIGN_VALUES: Final[Mapping[str, str]] = {
    "maximize": "write `max`",
    "minimize": "write `min`",
    "uniform": "write `type: float`",
    "quniform": "write `type: float` with `step`",
    "q_uniform": "write `type: float` with `step`",
    "loguniform": "write `type: float` with `log: true`",
    "log_uniform": "write `type: float` with `log: true`",
    "log_uniform_values": "write `type: float` with `log: true`",
    "randint": "write `type: int`",
    "int_uniform": "write `type: int`",
    "lograndint": "write `type: int` with `log: true`",
    "choice": "write `type: categorical`",
    "constant": "a constant belongs in `fixed`",
    "bayes": "write `type: tpe` or `type: gp`",
    "optuna": "write `type: tpe`",
    "grid_search": "write `type: grid`",
    "hyperband": "write `type: asha`",
    "async_hyperband": "write `type: asha`",
    "asynchyperband": "write `type: asha`",
    "fifo": "write `type: none`",
    "median_stopping": "write `type: median`",
    "medianstopping": "write `type: median`",
    "stopping": "write `stop`",
    "promotion": "write `promote`",
    "macs": "write `gmacs`",
    "flops": "write `gmacs`",
    "gflops": "write `gmacs`",
    "epochs": "write `epoch`",
    "training_iteration": "write `epoch`",
}

#: Pydantic's error types -> our words; ``{...}`` are filled from the error's context.
_RULES: Final[Mapping[str, str]] = {
    "bool_type": "must be true or false",
    "dict_type": A_SECTION,
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "model_attributes_type": A_SECTION,
    "model_type": A_SECTION,
    "string_pattern_mismatch": "must match {pattern}",
    "string_too_long": "must be at most {max_length} characters long",
    "string_type": "must be a word",
    "too_short": "must hold at least {min_length} item",
    "tuple_type": "must be a list",
    "union_tag_invalid": "must be {expected_tags}",
    "union_tag_not_found": "is missing",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One broken rule: where it stands (``path``) and what to tell (``text``, without the place)."""

    path: Path
    text: str


def dotted(path: Path) -> str:
    """The path as people write it.

    >>> dotted(("parameters", "depth", "choices", 1))
    'parameters.depth.choices[1]'
    """
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def shown(value: object) -> str:
    """A value as an error quotes it: its repr, cut where it grows long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def quoting(key: object, value: object) -> str:
    """What to do where YAML has read a text as another kind; empty for a text.

    >>> quoting("path", 2024)
    'A text that YAML takes for another kind goes in quotes: `path: "..."`.'
    """
    if isinstance(value, str | None):
        return ""
    return f'A text that YAML takes for another kind goes in quotes: `{key}: "..."`.'


def raise_problems(title: str, problems: Iterable[Problem], then: ValidationError | None = None) -> None:
    """Raise ``problems`` (and those of ``then``) as one ValidationError; return if there are none."""
    found = [*problems, *(problems_in(then) if then else ())]
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(_OURS, "{text}", {"text": problem.text}), loc=problem.path, input=None
        )
        for problem in found
    ]
    if lines:
        raise ValidationError.from_exception_data(title, lines)


def problems_in(error: ValidationError) -> Iterator[Problem]:
    """The problems of a ValidationError, pydantic's own put in our words."""
    for line in error.errors(include_url=False):
        kind, path, context = line["type"], line["loc"], line.get("ctx", {})
        if kind == _OURS:
            yield Problem(path=path, text=context["text"])
        else:
            path = (*path, "type") if kind.startswith("union_tag_") else path
            text = _in_our_words(kind, context, line["input"], line["msg"])
            hint = quoting(path[-1], line["input"]) if kind == "string_type" and path else ""
            yield Problem(path=path, text=f"{text} {hint}" if hint else text)


def _in_our_words(kind: str, context: Mapping[str, Any], value: Any, fallback: str) -> str:
    rule = _RULES[kind].format(**context) if kind in _RULES else fallback
    if kind in ("missing", "union_tag_not_found"):
        return explain(rule)
    got = context["tag"] if kind == "union_tag_invalid" else value
    foreign = _FOREIGN_VALUES.get(got) if isinstance(got, str) else None
    hint = f"That is another tool's word: {foreign}." if foreign else ""
    return explain(rule, got=shown(got), hint=hint)
