"""Faster imports: packages that import a module on first use, and torchmetrics without its optional parts."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["import_lean_torchmetrics", "lazy_names"]


def lazy_names(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__`` (PEP 562) and ``__all__`` of a package, from the imports of its ``__init__``.

    The names that the ``__init__`` imports from this project are the package's public names, each written
    once. Those under ``if TYPE_CHECKING`` are not imported with the package: ``__getattr__`` imports the
    module of such a name when the name is first used. The package must be installed with its source, as every
    wheel is.

    Args:
        package: the name of the package, which is being imported.

    >>> getattr(importlib.import_module("tune_rescon.storage"), "sqlite_ur")
    Traceback (most recent call last):
    AttributeError: module 'tune_rescon.storage' has no attribute 'sqlite_ur'
    """
    project = package.partition(".")[0]
    body = ast.parse(_source(package)).body
    lazy = dict(_imported(project, list(_for_type_checker(body))))

    def get(name: str) -> Any:
        if name not in lazy:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(lazy[name]), name)

    # The order of ruff's __all__: constants, classes, the rest.
    names = {*lazy, *dict(_imported(project, body))} - set(__all__)
    return get, sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def _source(package: str) -> str:
    spec = sys.modules[package].__spec__
    assert spec is not None, "the import system gives every package a spec"
    source: str | None = spec.loader.get_source(package)  # type: ignore[union-attr] # a package of Python files
    assert source is not None, "a package is installed with its source"
    return source


def _for_type_checker(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements under ``if TYPE_CHECKING``."""
    for node in body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from node.body


def _imported(project: str, body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield each name that the statements import from the project, with its module."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == project:
            yield from ((alias.name, node.module) for alias in node.names)


#: Packages that are reported to torchmetrics as not installed.
_UNUSED: Final = frozenset({"matplotlib", "scipy", "torchvision"})


def import_lean_torchmetrics() -> None:
    """Import torchmetrics as if matplotlib, SciPy and torchvision were not installed.

    Lightning imports torchmetrics, which imports these for plots and image metrics. That costs 1.8 s of
    processor time in each process, out of 5.4 s for all of torch and Lightning
    (benchmarks/notes/driver_and_turnover.md). torchmetrics has no switch for this, but a single class checks
    which packages are installed.

    Call it only in this package's own processes, and before Lightning is imported. Afterwards torchmetrics'
    plots and image metrics report that a package is missing. If torchmetrics is already imported, the call
    does nothing.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    is_met, is_there = imports.RequirementCache.__bool__, imports.package_available

    def is_met_and_used(self: imports.RequirementCache) -> bool:
        if self.requirement not in _UNUSED:
            return is_met(self)
        # Stored in the object, as by the original method, so that later calls return the same result.
        self.available = False
        self.message = f"{self.requirement} is not used in this process"
        return False

    imports.RequirementCache.__bool__ = is_met_and_used  # type: ignore[method-assign]
    imports.package_available = lambda name: name not in _UNUSED and is_there(name)  # type: ignore[assignment]
    try:
        import torchmetrics  # noqa: F401
    finally:
        imports.RequirementCache.__bool__ = is_met  # type: ignore[method-assign]
        imports.package_available = is_there
