"""Find, load and write space files. An error of loading lists every problem with its line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

import tune_rescon
from tune_rescon.config import plain_number
from tune_rescon.errors import SpaceError, dotted, format_error, unknown_name_message
from tune_rescon.spaces.field_rules import check_rows
from tune_rescon.spaces.overrides import apply_overrides
from tune_rescon.spaces.parameters import Parameter
from tune_rescon.spaces.sections import (
    Budget,
    Fidelity,
    Goal,
    Metric,
    Resources,
    Sampler,
    Scheduler,
    Section,
    Value,
)
from tune_rescon.spaces.space import PartialSpace, Space, check_rules, read_dataset
from tune_rescon.spaces.yaml_document import (
    Document,
    Problem,
    SourceLine,
    broken_rule,
    problems_in,
    read_document,
    shown,
)

__all__ = [
    "chosen_values",
    "dump_space",
    "find_space",
    "list_spaces",
    "load_goal",
    "load_space",
    "parse_goal",
    "parse_space",
    "read_space_file",
    "space_folder",
    "yaml_text",
]


_SUFFIXES: Final = (".yaml", ".yml")


def space_folder() -> Path:
    """Return the folder of the spaces that come with the package.

    The folder is inside the package in a wheel, and beside the package in a checkout or editable install.
    """
    package = Path(tune_rescon.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def list_spaces() -> tuple[str, ...]:
    """Return the names of the spaces that come with the package, sorted."""
    return tuple(sorted(path.stem for path in space_folder().glob("*.yaml")))


def find_space(name_or_path: str | Path) -> Path:
    """Return the file of a space, given by name or by path. A path ends in .yaml or .yml, or has a separator.

    Raises:
        SpaceError: there is no such space.
    """
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        return path
    if path.name not in list_spaces():
        hint = "A file of your own is given by its path, ending in .yaml."
        raise SpaceError(f"{unknown_name_message('space', path.name, list_spaces())} {hint}")
    return space_folder() / f"{path.name}.yaml"


def read_space_file(path: Path) -> str:
    """Return the text of a space file.

    Raises:
        SpaceError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpaceError(
            format_error("a space file must be readable", got=error.strerror, where=str(path))
        ) from error
    except UnicodeDecodeError as error:
        raise SpaceError(
            format_error("a space file must be UTF-8", got=error.reason, where=str(path))
        ) from error


_Section = TypeVar("_Section", bound=Section)

_PARAMETER: Final[TypeAdapter[Parameter]] = TypeAdapter(Parameter)
_VALUES: Final = TypeAdapter(dict[str, Value])
_ROWS: Final = TypeAdapter(list[dict[str, Value]])

#: Readers of the sections; each section is read alone, so that a broken one does not hide others.
_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "dataset": read_dataset,
    "metric": Metric.model_validate,
    "fidelity": Fidelity.model_validate,
    "sampler": Sampler.model_validate,
    "scheduler": Scheduler.model_validate,
    "budget": Budget.model_validate,
    "fixed": _VALUES.validate_python,
    "initial": _ROWS.validate_python,
    "resources_per_trial": lambda raw: Resources() if raw == "auto" else Resources.model_validate(raw),
}

#: The types of parameters, which pydantic inserts into the path of a problem.
_PARAMETER_TYPES: Final = ("int", "float", "categorical")

_PROGRESS: Final = logging.getLogger("tune_rescon.progress")


def load_space(name_or_path: str | Path, overrides: Sequence[str] = (), *, drop_rows: bool = True) -> Space:
    """Load a space by the name of one that comes with the package, or by the path of a file.

    Args:
        name_or_path: a name such as ``att92``; a path ends in .yaml or .yml, or has a separator.
        overrides: ``KEY=VALUE`` each, as for ``--set``: a dotted key of the file and a YAML value. If the key
            accepts only text, the value is that text. A field's own name is a key too: ``learning_rate``
            pins that field, whether it was searched or not.
        drop_rows: leave out each row of ``initial`` that the overrides no longer fit, with a message to the
            logger ``tune_rescon.progress``. If False, such a row is an error.

    Raises:
        SpaceError: there is no such space, or it breaks rules. The error lists each rule with its file, line
            and the value that breaks it.
    """
    path = find_space(name_or_path)
    return parse_space(
        read_space_file(path), source=_shortest(path), overrides=overrides, drop_rows=drop_rows
    )


def parse_space(text: str, *, source: str, overrides: Sequence[str] = (), drop_rows: bool = False) -> Space:
    """Load a space from the text of a file, as :func:`load_space` does.

    Args:
        text: the file's text.
        source: the file's name in error messages.
        overrides: ``KEY=VALUE`` each, as for ``--set``.
        drop_rows: as for :func:`load_space`.
    """
    document = _read(text, source)
    before, rows = _partial_space(document.value), document.value.get("initial")
    fitted = not any(check_rows(before.initial, before.parameters))
    apply_overrides(document, overrides)
    if drop_rows and overrides and fitted:
        _drop_rows(document, rows)
    return _validated(Space, document, lambda: check_rules(_partial_space(document.value)))


def load_goal(path: Path) -> Goal:
    """Return the metric and the budget of a search's space file, without reading or checking the rest.

    Loading a whole space takes 10 ms, nearly all of it for the YAML, and a list of searches needs only two
    sections of each space.

    Raises:
        SpaceError: the file cannot be read, or these sections are missing or break their rules.
    """
    return parse_goal(read_space_file(path), source=_shortest(path))


def parse_goal(text: str, *, source: str) -> Goal:
    """Return the metric and the budget of a space's text, as :func:`load_goal` does.

    Args:
        text: the file's text.
        source: the file's name in error messages.
    """
    document = _read(_only(text, Goal.keys()), source)
    return _validated(Goal, document, lambda: ())


def _only(text: str, sections: Collection[str]) -> str:
    """Keep only the named sections of ``text``, each on its lines; a section begins with a key in column 1.

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
    document = read_document(text, SourceLine(1, source))
    if not isinstance(document.value, dict):
        if not document.problems:
            document.add_problem(document.top, (), "must hold sections", got=shown(document.value))
        raise _space_error(document.problems)
    return document


def _validated(kind: type[_Section], document: Document, more: Callable[[], Iterable[Problem]]) -> _Section:
    """Return the document as a ``kind``.

    Args:
        kind: the model.
        document: the values.
        more: returns the problems that pydantic does not find, because a section that cannot be read ends it.

    Raises:
        SpaceError: the document has problems.
    """
    try:
        section = kind.model_validate(document.value)
    except ValidationError as error:
        placed = [_placed(document, problem) for problem in (*problems_in(error), *more())]
        raise _space_error([*document.problems, *placed]) from None
    if document.problems:
        raise _space_error(document.problems)
    return section


def _shortest(path: Path) -> str:
    """Return the path relative to the current directory if it is below it, else the complete path."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _drop_rows(document: Document, given: Any) -> None:
    """Remove the rows of ``initial`` that fit the file but not its overrides, with a message for each.

    Args:
        document: the document, with its overrides.
        given: the rows before the overrides.
    """
    rows, now = document.value.get("initial"), _partial_space(document.value)
    if rows is not given or not now.initial or now.unread or not now.parameters:
        return
    reasons = [_why_left_out(row, now) for row in now.initial]
    for index, reason in enumerate(reasons):
        if reason is not None:
            place = document.place(("initial", index))
            _PROGRESS.warning(
                f"{place}: this row of `initial` is left out, because it does not fit --set: {reason}"
            )
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    document.value["initial"] = [rows[index] for index in kept]
    places, top = document.places, ("initial",)
    document.places = {path: place for path, place in places.items() if path[:1] != top or path == top}
    for new, old in enumerate(kept):
        row = {path: place for path, place in places.items() if path[:2] == ("initial", old)}
        document.places |= {("initial", new, *path[2:]): place for path, place in row.items()}


def _why_left_out(row: Mapping[str, Any], now: PartialSpace) -> str | None:
    """Return why a row of ``initial`` does not fit the space; None if it fits."""
    problem = next(check_rows([row], now.parameters), None)
    if problem is None:
        return None
    name = str(problem.path[-1])
    if name in now.fixed and name not in now.parameters:
        return f"{name} is fixed at {shown(now.fixed[name])}, and the row has {shown(row[name])}."
    return f"{name} {problem.text}"


def chosen_values(space: Space, settings: Sequence[str]) -> dict[str, Any]:
    """Return values of parameters, given as ``KEY=VALUE`` with YAML values, for a trial of ``space``.

    Parameters may be left out. A conditional parameter needs the one on which it depends.

    Raises:
        SpaceError: A key is not a parameter, or a parameter cannot have the value. Every problem is named.
    """
    values: dict[str, Any] = {}
    found: list[tuple[SourceLine, Problem]] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        place = SourceLine(0, f"--set {key}")
        if not equals:
            found.append((place, broken_rule((), "--set takes KEY=VALUE", got=shown(setting))))
            continue
        read = read_document(text, place)
        found += read.problems
        # A tuple, as the choices of the space are.
        value = tuple(read.value) if isinstance(read.value, list) else read.value
        values[key.removeprefix("parameters.")] = value
    for problem in check_rows([values], space.parameters):
        name = str(problem.path[-1])
        if name in values:
            found.append((SourceLine(0, f"--set {name}"), Problem(path=(), text=problem.text)))
    if found:
        raise _space_error(found)
    return values


def _partial_space(data: Mapping[str, Any]) -> PartialSpace:
    """Return the readable parts of ``data``, section by section and parameter by parameter."""
    sections = {
        name: part for name, read in _READERS.items() if (part := _try(read, data.get(name))) is not None
    }
    given = data.get("parameters")
    read = (
        {name: _try(_PARAMETER.validate_python, raw) for name, raw in given.items()}
        if isinstance(given, dict)
        else {}
    )
    return PartialSpace(
        **sections,
        parameters={name: parameter for name, parameter in read.items() if parameter is not None},
        unread=[name for name, parameter in read.items() if parameter is None],
    )


def _try(read: Callable[[Any], Any], raw: Any) -> Any:
    """Return ``read(raw)``; None if it fails, because validating the complete file reports the problem."""
    try:
        return read(raw)
    except ValidationError:
        return None


def _placed(document: Document, problem: Problem) -> tuple[SourceLine, Problem]:
    path = problem.path
    if path[:1] == ("parameters",) and len(path) > 2 and path[2] in _PARAMETER_TYPES:
        problem = Problem(path=path[:2] + path[3:], text=problem.text)
    return document.place(problem.path), problem


def _space_error(found: Iterable[tuple[SourceLine, Problem]]) -> SpaceError:
    """Return the error that lists each problem once, by its line."""
    lines = []
    for place, problem in sorted(dict.fromkeys(found), key=lambda pair: pair[0]):
        where = f"{place}: {dotted(problem.path)}" if problem.path else str(place)
        lines.append(f"{where}: {problem.text}")
    return SpaceError("\n".join(lines))


def dump_space(space: Space) -> str:
    """Return the space as a file's text; :func:`load_space` reads it back as an equal space."""
    values = space.model_dump(by_alias=True)
    # A parameter without `step` or `when` reads better without these keys; every other null is a choice.
    values["parameters"] = {
        name: parameter.model_dump(by_alias=True, exclude_none=True)
        for name, parameter in space.parameters.items()
    }
    return yaml_text(values)


def yaml_text(values: Mapping[str, Any], *, block: bool = False) -> str:
    """Return ``values`` as YAML that YAML 1.1 and YAML 1.2 tools read alike.

    Args:
        values: plain values; a tuple is written as a list, a number of any real type as a number.
        block: write each item of inner lists and mappings on its own line.

    >>> print(yaml_text({"compile": "off", "learning_rate": 1e-05}), end="")
    compile: "off"
    learning_rate: 1.0e-05
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False if block else None
    yaml.width = 1_000  # a section on a line, as people write them
    yaml.representer.sort_base_mapping_type_on_output = False
    yaml.representer.ignore_aliases = lambda _: True  # the loader reads no anchors
    text = StringIO()
    yaml.dump(_plain(values), text)
    return text.getvalue()


_STRING: Final = "tag:yaml.org,2002:str"
_YAML_1_1: Final = VersionedResolver(version=(1, 1))


class _Representer(SafeRepresenter):
    """Writes scalars so that they have the same type in YAML 1.1, which PyYAML reads, and in YAML 1.2."""

    def represent_str(self, data: str) -> ScalarNode:
        """Quote texts that YAML 1.1 reads as another type: ``off``, ``yes``, ``1:30``."""
        style = None if _YAML_1_1.resolve(ScalarNode, data, (True, False)) == _STRING else '"'
        node: ScalarNode = self.represent_scalar(_STRING, data, style=style)
        return node

    def represent_float(self, data: float) -> ScalarNode:
        """Write ``1.0e-05``, because YAML 1.1 reads it as a string without the dot."""
        node: ScalarNode = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return plain_number(value)
