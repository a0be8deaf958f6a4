"""The public names of each package: sorted, complete, and importable."""

from __future__ import annotations

import importlib
import operator
import pkgutil
from types import ModuleType

import pytest

import tune_rescon

PACKAGES = [m.name for m in pkgutil.iter_modules(tune_rescon.__path__, "tune_rescon.") if m.ispkg]
#: Modules that need an optional package, and that package.
EXTRAS = {"tune_rescon.timm_models": "timm", "tune_rescon.inference.saved_model": "tensorflow"}

MODULES = [m.name for m in pkgutil.walk_packages(tune_rescon.__path__, "tune_rescon.") if not m.ispkg]


@pytest.fixture(scope="module", params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    """A package with all its names loaded, because some of them import torch."""
    module = importlib.import_module(request.param)
    for name in module.__all__:
        getattr(module, name)
    return module


def test_every_package_is_found() -> None:
    expected = (
        "clusters data finals inference models reporting spaces storage testing tracking training tuning"
    )
    assert {f"tune_rescon.{folder}" for folder in expected.split()} <= set(PACKAGES)


def test_public_names_are_sorted_and_not_empty(package: ModuleType) -> None:
    names = list(package.__all__)
    # Sorted like by ruff: constants, classes, the rest.
    assert names == sorted(set(names), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert names, "a package without public names needs no __init__"


def test_each_name_is_public_in_its_own_module(package: ModuleType) -> None:
    for name in package.__all__:
        defining_module = getattr(getattr(package, name), "__module__", None)
        if defining_module is not None and defining_module.startswith("tune_rescon."):
            assert name in importlib.import_module(defining_module).__all__


def test_an_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        operator.attrgetter("no_such_name")(package)


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    """A module, imported outside of the tests' time limits."""
    if request.param in EXTRAS:
        pytest.importorskip(EXTRAS[request.param], reason=f"{EXTRAS[request.param]} is not installed")
    return importlib.import_module(request.param)


def test_names_in_all_exist_and_are_unique(module: ModuleType) -> None:
    assert all(hasattr(module, public) for public in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
