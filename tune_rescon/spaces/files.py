"""Where space files are: those that come with the package, by name, and a person's own, by path."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import tune_rescon
from tune_rescon.errors import SpaceError, explain, unknown_name

__all__ = ["find_space", "list_spaces", "read_space_file", "space_folder"]

_SUFFIXES: Final = (".yaml", ".yml")


def space_folder() -> Path:
    """The folder of the spaces that come with the package.

    A wheel carries it inside the package; in a checkout (also one installed editable) it lies beside it.
    """
    package = Path(tune_rescon.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def list_spaces() -> tuple[str, ...]:
    """Names of the spaces that come with the package, sorted."""
    return tuple(sorted(path.stem for path in space_folder().glob("*.yaml")))


def find_space(name_or_path: str | Path) -> Path:
    """The file meant by a name, or by a path: what ends in .yaml or .yml, or holds a separator.

    Raises:
        SpaceError: no such space.
    """
    path = Path(name_or_path)
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        return path
    if path.name not in list_spaces():
        hint = "A file of your own is given by its path, ending in .yaml."
        raise SpaceError(f"{unknown_name('space', path.name, list_spaces())} {hint}")
    return space_folder() / f"{path.name}.yaml"


def read_space_file(path: Path) -> str:
    """The text of a space file.

    Raises:
        SpaceError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpaceError(
            explain("a space file must be readable", got=error.strerror, where=str(path))
        ) from error
    except UnicodeDecodeError as error:
        raise SpaceError(explain("a space file must be UTF-8", got=error.reason, where=str(path))) from error
