"""Import a user's function, named ``module:function``, and let a child process import this package."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_rescon.errors import ConfigError, format_error

__all__ = ["child_import_path", "import_function", "split_function"]


def split_function(name: str) -> tuple[str, str] | None:
    """Return the module and the function of ``module:function``; None if ``name`` has another form.

    >>> split_function("hospital.networks:small"), split_function("val_auroc"), split_function("a:b c")
    (('hospital.networks', 'small'), None, None)
    """
    module, colon, function = name.partition(":")
    if not colon or not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    return module, function


def import_function(name: str, *, what: str, where: str) -> Callable[..., Any]:
    """Return a user's function.

    Args:
        name: ``module:function``. The module may be in the working directory of the search.
        what: what the function computes, as the error message calls it.
        where: the field with the function's name; the error message names it.

    Raises:
        ConfigError: the module or function does not exist, or importing the module raises.
    """
    module, _, function = name.partition(":")
    # The working directory is not on the path of Ray's worker processes and of console commands.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        imported = importlib.import_module(module)
        loaded = getattr(imported, function, None)
    except Exception as error:
        rule = f"the module of {what} must be importable ({type(error).__name__}: {error})"
        raise ConfigError(format_error(rule, got=name, where=where)) from error
    if not callable(loaded):
        rule = f"the module {module} must have this function"
        # An installed module of this name comes before the user's.
        hint = f"The module is {imported.__file__}." if getattr(imported, "__file__", None) else ""
        raise ConfigError(format_error(rule, got=function, where=where, hint=hint))
    return loaded  # type: ignore[no-any-return]  # a user's function


def child_import_path() -> str:
    """Return PYTHONPATH for a child process, so that it imports this package from the same place."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))
