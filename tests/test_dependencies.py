"""pyproject.toml lists the distribution of every module that the package imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tune_rescon

PACKAGE = Path(tune_rescon.__file__).parent
PROJECT_FILE = PACKAGE.parent / "pyproject.toml"

#: The extras that a part of the package needs in addition to the package's dependencies.
PARTS = {
    "clusters": ["cluster"],
    "inference/export.py": ["onnx", "timm"],
    "models/external.py": ["timm"],
    "inference/saved_model.py": ["tensorflow"],
    "timm_models.py": ["timm"],
    "tuning/tensorboard_callback.py": ["tensorboard"],
}


#: The distributions of modules with another name. pydantic and boto3 require an exact version of their cores.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "botocore": "boto3",
    "lightning_fabric": "pytorch-lightning",
    "pydantic_core": "pydantic",
    "ruamel": "ruamel-yaml",
}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distribution_names(requirements: list[str]) -> set[str]:
    return {
        normalized(re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]) for requirement in requirements
    }


@cache
def project() -> dict[str, set[str]]:
    """The distributions of each extra; "" for those that are always installed."""
    values = tomllib.loads(PROJECT_FILE.read_text(encoding="utf-8"))["project"]
    extras = {
        extra: distribution_names(extra_requirements)
        for extra, extra_requirements in values["optional-dependencies"].items()
    }
    return {"": distribution_names(values["dependencies"]), **extras}


def imported_modules(file: Path) -> Iterator[str]:
    """Yield the modules of other distributions that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            modules = [node.module]
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "tune_rescon":
                yield top


def unlisted_modules(file: str, modules: Iterator[str]) -> list[str]:
    """Return those of ``modules`` whose distribution is not a dependency of the file's part."""
    listed = set(project()[""])
    for part, extras in PARTS.items():
        if file == part or file.startswith(f"{part}/"):
            listed.update(*(project()[extra] for extra in extras))
    return sorted(
        {module for module in modules if DISTRIBUTIONS.get(module, normalized(module)) not in listed}
    )


FILES = [str(file.relative_to(PACKAGE)) for file in sorted(PACKAGE.rglob("*.py"))]


def test_every_import_is_listed_in_pyproject() -> None:
    missing = {
        file: modules
        for file in FILES
        if (modules := unlisted_modules(file, imported_modules(PACKAGE / file)))
    }
    assert not missing, "list them in pyproject.toml: in `dependencies`, or in the extra of their part"


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("tuning/search.py", "jsonschema"),
        ("clusters/shared_rules.py", "onnx"),
        ("training/fit.py", "timm"),
        ("clusters.py", "boto3"),
        ("search.py", "nosuchmodule"),
    ],
)
def test_a_dependency_of_another_extra_is_reported_as_missing(file: str, module: str) -> None:
    assert unlisted_modules(file, iter([module, "torch", "PIL"])) == [module]


def test_each_part_and_its_extras_exist() -> None:
    for part, extras in PARTS.items():
        assert (PACKAGE / part).exists()
        assert set(extras) <= set(project())


def test_lower_bounds_exclude_releases_with_known_faults() -> None:
    text = PROJECT_FILE.read_text(encoding="utf-8")
    lower_bounds = dict(re.findall(r'"([a-z-]+)(?:\[[a-z]+\])?>=([0-9.]+)', text))
    for name, fixed_in in {"pytorch-lightning": (2, 6, 6), "ray": (2, 56), "mlflow": (3, 17, 2)}.items():
        assert tuple(map(int, lower_bounds[name].split("."))) >= fixed_in, name
