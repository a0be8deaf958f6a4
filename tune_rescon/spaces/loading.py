"""From a space file to a :class:`Space`, or to one error that says everything that is wrong, line by line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from tune_rescon.errors import SpaceError, explain
from tune_rescon.spaces.document import Document, Place, read_document
from tune_rescon.spaces.files import find_space, read_space_file
from tune_rescon.spaces.parameters import Parameter
from tune_rescon.spaces.problems import Problem, dotted, problems_in, shown
from tune_rescon.spaces.rules import Draft, broken_rules
from tune_rescon.spaces.section import Section, Value
from tune_rescon.spaces.sections import Budget, Fidelity, Goal, Metric, Resources, Sampler, Scheduler
from tune_rescon.spaces.space import Space, read_dataset
from tune_rescon.spaces.texts import typed_text

__all__ = ["load_goal", "load_space", "parse_space"]

_Section = TypeVar("_Section", bound=Section)

_PARAMETER: Final[TypeAdapter[Parameter]] = TypeAdapter(Parameter)
_VALUES: Final = TypeAdapter(dict[str, Value])
_ROWS: Final = TypeAdapter(list[dict[str, Value]])

#: Each part of a Draft that a broken neighbour must not hide.
_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "dataset": read_dataset,
    "metric": Metric.model_validate,
    "fidelity": Fidelity.model_validate,
    "sampler": Sampler.model_validate,
    "scheduler": Scheduler.model_validate,
    "budget": Budget.model_validate,
    "fixed": _VALUES.validate_python,
    "initial": _ROWS.validate_python,
    "resources_per_trial": Resources.model_validate,
}

#: Pydantic puts the type of a parameter into its path.
_PARAMETER_TYPES: Final = ("int", "float", "categorical")


def load_space(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Space:
    """Load a space that comes with the package, by name, or a file, by path.

    Args:
        name_or_path: a name such as ``att92``; a path ends in .yaml or .yml, or holds a separator.
        overrides: ``KEY=VALUE`` each, as ``--set`` takes them: a dotted key of the file, a YAML value. Where
            the key holds nothing but text, the value is that text.

    Raises:
        SpaceError: no such space, or rules that it breaks: each with file, line, rule and what came.
    """
    path = find_space(name_or_path)
    return parse_space(read_space_file(path), source=_shortest(path), overrides=overrides)


def parse_space(text: str, *, source: str, overrides: Sequence[str] = ()) -> Space:
    """:func:`load_space` from the text of a file; ``source`` names it in errors."""
    document = _read(text, source)
    for override in overrides:
        _override(document, override)
    return _judged(Space, document, lambda: broken_rules(_draft(document.value)))


def load_goal(path: Path) -> Goal:
    """What a search's own space file says it is to reach. Of the rest of the file nothing is read or judged.

    Composing YAML is what loading a space costs (10 ms): a list of many searches needs two lines of each.

    Raises:
        SpaceError: it cannot be read, or these sections are missing or break their rules.
    """
    document = _read(_only(read_space_file(path), Goal.keys()), _shortest(path))
    return _judged(Goal, document, lambda: ())


def _only(text: str, sections: Collection[str]) -> str:
    """``text`` with the named sections alone, each where it stood: a section begins with a key in column 1.

    >>> _only("name: a\\nmetric:\\n  mode: max\\nbudget: {trials: 4}", {"metric"})
    '\\nmetric:\\n  mode: max\\n'
    """
    kept, is_wanted = [], False
    for line in text.splitlines():
        if line[:1].isalpha():
            is_wanted = line.partition(":")[0] in sections
        kept.append(line if is_wanted else "")
    return "\n".join(kept)


def _read(text: str, source: str) -> Document:
    document = read_document(text, Place(1, source))
    if not isinstance(document.value, dict):
        if not document.problems:
            document.complain(document.top, (), explain("must hold sections", got=shown(document.value)))
        raise _space_error(document.problems)
    return document


def _judged(kind: type[_Section], document: Document, more: Callable[[], Iterable[Problem]]) -> _Section:
    """The document as a ``kind``; ``more`` finds the problems that one of its sections hides in another."""
    try:
        section = kind.model_validate(document.value)
    except ValidationError as error:
        placed = [_placed(document, problem) for problem in (*problems_in(error), *more())]
        raise _space_error([*document.problems, *placed]) from None
    if document.problems:
        raise _space_error(document.problems)
    return section


def _shortest(path: Path) -> str:
    """The path from here, where it lies below; else the whole of it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _override(document: Document, override: str) -> None:
    key, equals, value = override.partition("=")
    if equals and all(key.split(".")):
        try:
            document.override_text(key, typed_text(key, value))
        except LookupError:
            document.override(key, value)
    else:
        hint = "An example: --set fidelity.max=27."
        text = explain("--set takes KEY=VALUE, with a dotted key", got=shown(override), hint=hint)
        document.complain(Place(0, f"--set {override}"), (), text)


def _draft(data: Mapping[str, Any]) -> Draft:
    """What can be read of ``data``, section by section and parameter by parameter."""
    sections = {
        name: part for name, read in _READERS.items() if (part := _try(read, data.get(name))) is not None
    }
    given = data.get("parameters")
    read = (
        {name: _try(_PARAMETER.validate_python, raw) for name, raw in given.items()}
        if isinstance(given, dict)
        else {}
    )
    return Draft(
        **sections,
        parameters={name: parameter for name, parameter in read.items() if parameter is not None},
        unread=[name for name, parameter in read.items() if parameter is None],
    )


def _try(read: Callable[[Any], Any], raw: Any) -> Any:
    """What ``read`` makes of ``raw``; None where it cannot: the problem is known from the whole file."""
    try:
        return read(raw)
    except ValidationError:
        return None


def _placed(document: Document, problem: Problem) -> tuple[Place, Problem]:
    path = problem.path
    if path[:1] == ("parameters",) and len(path) > 2 and path[2] in _PARAMETER_TYPES:
        problem = Problem(path=path[:2] + path[3:], text=problem.text)
    return document.place(problem.path), problem


def _space_error(found: Iterable[tuple[Place, Problem]]) -> SpaceError:
    return SpaceError("\n".join(_lines(found)))


def _lines(found: Iterable[tuple[Place, Problem]]) -> Iterator[str]:
    for place, problem in sorted(dict.fromkeys(found), key=lambda pair: pair[0]):
        where = f"{place}: {dotted(problem.path)}" if problem.path else str(place)
        yield f"{where}: {problem.text}"
