"""Whether what a space fixes and searches are fields of a trial, and their values ones they admit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tune_rescon.config import TrialConfig, check_field, field_names, field_rule
from tune_rescon.errors import explain, unknown_name
from tune_rescon.spaces.combinations import is_among
from tune_rescon.spaces.parameters import CategoricalParameter, Parameter
from tune_rescon.spaces.problems import Path, Problem, quoting, shown

__all__ = ["broken_conditions", "broken_fields", "field_problem", "holds_text", "unknown_fields"]

#: Other names people have for our fields.
_FOREIGN: Final[Mapping[str, str]] = {
    "lr": "write `learning_rate`",
    "wd": "write `weight_decay`",
    "l2": "write `weight_decay`",
    "bs": "write `batch_size`",
    "batch": "write `batch_size`",
    "model": "write `preset`, or `layout` and `depth`",
    "arch": "write `preset`, or `layout` and `depth`",
    "img_size": "write `image_size`",
    "epochs": "write `fidelity.max`",
    "max_epochs": "write `fidelity.max`",
    "seed": "write `sampler.seed`",
    "scheduler": "write `schedule`",
    "stochastic_depth": "write `drop_path`",
    "clip_grad": "write `gradient_clip`",
}


def broken_fields(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """Unknown names, names both fixed and searched, values and bounds that a field does not admit."""
    for name, value in fixed.items():
        yield from _broken(("fixed", name), name, {(): value})
    if "dataset" in fixed:
        text = explain("the images of every trial are named in the section `dataset`", got="dataset here")
        yield Problem(path=("fixed", "dataset"), text=text)
    for name, parameter in parameters.items():
        yield from _broken(("parameters", name), name, _limits(parameter))
        if name in fixed:
            text = explain("a field is fixed or searched, not both", got=f"{name} in `fixed` too")
            yield Problem(path=("parameters", name), text=text)
        if isinstance(parameter, CategoricalParameter):
            yield from _repeated(name, parameter)


def unknown_fields(names: Iterable[str]) -> Iterator[Problem]:
    """The names in ``parameters`` that are no field of a trial."""
    yield from (_unknown(("parameters", name), name) for name in names if name not in field_names())


def field_problem(path: Path, name: str, value: Any) -> Problem | None:
    """The problem at ``path`` with ``value`` as TrialConfig's field ``name``, which must exist."""
    rule = check_field(name, value)
    if rule is None:
        return None
    hint = quoting(path[-1], value) if holds_text(name) and path[-1] == name else ""
    return Problem(path=path, text=explain(rule, got=shown(value), hint=hint))


def holds_text(name: str, kind: type = TrialConfig) -> bool:
    """Whether a configuration's field holds a text of a person's own, not one of a few words."""
    rule = field_rule(name, kind)
    return not rule.choices and set(rule.kinds) <= {str, type(None)}


def _broken(path: Path, name: str, values: Mapping[Path, Any]) -> Iterator[Problem]:
    if name not in field_names():
        yield _unknown(path, name)
        return
    for below, value in values.items():
        problem = field_problem((*path, *below), name, value)
        if problem:
            yield problem


def _unknown(path: Path, name: str) -> Problem:
    answer = unknown_name("parameter", name, field_names())
    hint = f" That is another tool's word: {_FOREIGN[name]}." if name in _FOREIGN else ""
    return Problem(path=path, text=answer + hint)


def _limits(parameter: Parameter) -> dict[Path, Any]:
    """What of a parameter its field must admit: every choice, or both bounds."""
    if isinstance(parameter, CategoricalParameter):
        return {("choices", index): choice for index, choice in enumerate(parameter.choices)}
    return {("low",): parameter.low, ("high",): parameter.high}


def _repeated(name: str, parameter: CategoricalParameter) -> Iterator[Problem]:
    for index, choice in enumerate(parameter.choices):
        if is_among(choice, parameter.choices[:index]):
            text = explain("choices must differ", got=f"{shown(choice)} again")
            yield Problem(path=("parameters", name, "choices", index), text=text)


def broken_conditions(parameters: Mapping[str, Parameter]) -> Iterator[Problem]:
    """A ``when`` must name a categorical declared above it, and some of that one's choices."""
    above: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        if parameter.when:
            path = ("parameters", name, "when")
            parent = above.get(parameter.when.parameter)
            if isinstance(parent, CategoricalParameter):
                yield from _strange_values(path, parameter.when.within, parent)
            else:
                yield Problem(path=(*path, "parameter"), text=_no_parent(parameter.when.parameter, above))
        above[name] = parameter


def _strange_values(path: Path, values: tuple[Any, ...], parent: CategoricalParameter) -> Iterator[Problem]:
    for index, value in enumerate(values):
        if not is_among(value, parent.choices):
            rule = f"must be one of the choices {', '.join(map(shown, parent.choices))}"
            yield Problem(path=(*path, "in", index), text=explain(rule, got=shown(value)))


def _no_parent(name: str, above: Mapping[str, Parameter]) -> str:
    known = [other for other, parameter in above.items() if isinstance(parameter, CategoricalParameter)]
    rule = "must name a categorical parameter declared above this one"
    there = f"There: {', '.join(known)}." if known else "There is none."
    return explain(rule, got=shown(name), hint=there)
