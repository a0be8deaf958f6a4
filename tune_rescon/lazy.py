"""Public names that import their module on first use (PEP 562), so quick commands do not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``, which imports a name's module when the name is first used.

    Args:
        package: the name of the package.
        homes: for each public name, the module of the package that defines it.

    >>> get = lazy_names("tune_rescon", {"format_error": "errors"})
    >>> get("format_error").__name__
    'format_error'
    >>> get("format_eror")
    Traceback (most recent call last):
    AttributeError: module 'tune_rescon' has no attribute 'format_eror'
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get
