"""The spaces that come with the package: each loads, samples, and is found however it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from tune_rescon.config import TrialConfig
from tune_rescon.errors import SpaceError
from tune_rescon.models import describe_network
from tune_rescon.spaces import (
    Space,
    dump_space,
    grid_points,
    list_spaces,
    load_space,
    parse_space,
    preview,
    space_folder,
    trial_config,
)
from tune_rescon.spaces.json_schema import schema_text

ROOT = Path(__file__).resolve().parents[2]

#: Overrides without which a space cannot be loaded.
REQUIRED_OVERRIDES = {"folder": ("dataset.path=images",)}


def _load(name: str) -> Space:
    return load_space(name, REQUIRED_OVERRIDES.get(name, ()))


@pytest.mark.parametrize("name", list_spaces())
def test_a_shipped_space_samples_networks_that_exist(name: str) -> None:
    space = _load(name)
    for sampled in preview(space, 30):
        config = trial_config(space, sampled)
        assert isinstance(config, TrialConfig)
        describe_network(config, classes=10, in_channels=3)


@pytest.mark.parametrize("name", list_spaces())
def test_a_shipped_space_round_trips_through_its_file(name: str) -> None:
    space = _load(name)
    assert parse_space(dump_space(space), source="dumped.yaml") == space


@pytest.mark.parametrize("name", list_spaces())
def test_a_shipped_space_is_named_after_its_file_and_names_the_schema(name: str) -> None:
    assert _load(name).name == name
    first = (space_folder() / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./schema.json"


@pytest.mark.parametrize("name", list_spaces())
def test_a_shipped_space_is_valid_by_the_json_schema(name: str) -> None:
    document = YAML(typ="safe", pure=True).load((space_folder() / f"{name}.yaml").read_text())
    jsonschema.validate(document, json.loads(schema_text()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("fixed", "momentum"), 1),
        (("fixed", "lr"), 0.1),
        (("dataset", "name"), "mnist"),
        (("metric", "name"), "val_acc"),
        (("parameters", "depth"), {"type": "float", "low": 1, "high": 2}),
        (("parameters", "attention"), {"type": "categorical", "choices": ["mixd"]}),
        (("parameters", "learning_rate", "low"), "small"),
        (("num_samples",), 3),
    ],
)
def test_the_json_schema_detects_a_mistake(path: tuple[str, ...], value: object) -> None:
    document = YAML(typ="safe", pure=True).load((space_folder() / "att92.yaml").read_text())
    section = document
    for step in path[:-1]:
        section = section[step]
    section[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(schema_text()))


def test_the_schema_file_is_up_to_date() -> None:
    """Regenerate it with ``python -m tune_rescon.spaces.json_schema``."""
    assert (space_folder() / "schema.json").read_text() == schema_text()


def test_a_folder_without_a_path_is_an_error_with_a_hint() -> None:
    with pytest.raises(SpaceError, match=r"Give it with --set dataset\.path=DIR"):
        load_space("folder")


def test_rescon_table_is_its_six_rows() -> None:
    rows = {(row["dataset"], row["preset"]) for row in grid_points(load_space("rescon_table"))}
    presets = ("rescon_attention92_32", "rescon_attention56_224", "rescon_attention92_224")
    assert rows == {(data, preset) for data in ("cifar10", "cifar100") for preset in presets}


def test_depth_spans_the_papers_depths() -> None:
    depths = load_space("depth", ("initial=[]",)).parameters["depth"]
    assert depths.model_dump()["choices"] == (56, 92, 128, 164, 236, 452)


@pytest.mark.timeout(30)  # an interpreter of its own
def test_previewing_a_space_is_fast_and_needs_no_torch() -> None:
    # Processor time does not depend on the machine's other work.
    script = """
import sys, time; start = time.process_time()
from tune_rescon.spaces import load_space, preview
preview(load_space("att92"), 8)
print(round(time.process_time() - start, 3), *{"torch", "ray", "mlflow"} & sys.modules.keys())
"""
    stdout = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    seconds, *imported = stdout.split()
    assert imported == []
    assert float(seconds) < 1


def test_every_package_is_listed_for_setuptools() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    package = ROOT / "tune_rescon"
    packages = {".".join(init.parent.relative_to(ROOT).parts) for init in package.rglob("__init__.py")}
    assert listed == packages | {"tune_rescon.search_spaces"}


@pytest.mark.timeout(60)
def test_a_wheel_carries_the_spaces(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("tune_rescon", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", source)
    (source / "README.md").touch()
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build, str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    installed = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    script = "from tune_rescon.spaces import *; print(space_folder(), *list_spaces()); load_space('att92')"
    stdout = subprocess.run(
        [sys.executable, "-c", script], cwd=installed, check=True, capture_output=True, text=True
    ).stdout.split()
    assert stdout == [str(installed / "tune_rescon" / "search_spaces"), *list_spaces()]
    assert (installed / "tune_rescon" / "search_spaces" / "schema.json").is_file()
