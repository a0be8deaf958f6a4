"""The Dockerfile and its build context, checked without Docker: copied files, installs, and the user."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: Limit of the build context's size.
MAX_CONTEXT_BYTES = 8 * 2**20


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(keyword, rest.strip()) for keyword, _, rest in parts]


def copied_files() -> list[str]:
    """Return the sources of all COPY instructions."""
    return [
        word
        for keyword, rest in instructions()
        if keyword == "COPY"
        for word in shlex.split(rest)[:-1]
        if not word.startswith("--")
    ]


def is_in_context(path: str) -> bool:
    """Whether .dockerignore includes a file: the last pattern that matches it or a parent folder decides."""
    included = True
    names = path.split("/")
    parents = ["/".join(names[: count + 1]) for count in range(len(names))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if any(_matches(pattern, parent) for parent in parents):
            included = line.startswith("!")
    return included


def _matches(pattern: str, path: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files of the build context."""
    folder = tmp_path_factory.mktemp("context")
    for top in ROOT.iterdir():
        for path in [top] if top.is_file() else top.rglob("*") if is_in_context(top.name) else []:
            name = str(path.relative_to(ROOT))
            if path.is_file() and is_in_context(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
    return folder


def test_the_build_context_has_the_copied_files_only(context: Path) -> None:
    sources = copied_files()
    assert {"pyproject.toml", "constraints.txt", "tune_rescon", "search_spaces"} <= set(sources)
    assert sorted(path.name for path in context.iterdir()) == sorted(sources)
    files = [path for path in context.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_CONTEXT_BYTES
    assert not [path for path in files if path.suffix == ".pyc"]


@pytest.mark.parametrize(
    "name", [".git/config", ".venv/bin/python", "runs/a/study.db", "data/x", "tests/a.py"]
)
def test_large_and_private_files_are_not_in_the_build_context(name: str) -> None:
    assert not is_in_context(name)


def test_the_base_image_has_the_installed_ray_version() -> None:
    (base,) = [rest for keyword, rest in instructions() if keyword == "ARG" and rest.startswith("BASE=")]
    assert base == f"BASE=rayproject/ray:{version('ray')}-py311-gpu"
    assert ("FROM", "${BASE}") in instructions()


def test_installs_use_pinned_versions_and_do_not_run_as_root() -> None:
    found = instructions()
    first_run = next(number for number, (keyword, _) in enumerate(found) if keyword == "RUN")
    users = [rest for keyword, rest in found if keyword == "USER"]
    assert users == ["1000:100"]
    assert found.index(("USER", "1000:100")) < first_run
    installs = [
        line for keyword, rest in found if keyword == "RUN" for line in rest.split("&&") if "pip" in line
    ]
    assert len(installs) == 2
    for install in installs:
        assert "--constraint constraints.txt" in install or "--no-deps --no-build-isolation" in install
    assert all("--chown=1000:100" in rest for keyword, rest in found if keyword == "COPY")


def requirements_script() -> str:
    """Return the Python script in the RUN instruction that lists the requirements."""
    run = next(rest for keyword, rest in instructions() if keyword == "RUN" and "requirements.txt" in rest)
    arguments = shlex.split(run)
    return arguments[arguments.index("-c") + 1]


@pytest.mark.parametrize("extras", ["cluster s3", "cluster gcs"])
def test_the_listed_requirements_match_pyproject(extras: str, context: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", requirements_script()],
        cwd=context,
        env={"EXTRAS": extras},
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    expected = [
        *project["dependencies"],
        *(r for e in extras.split() for r in project["optional-dependencies"][e]),
    ]
    assert done.stdout.splitlines() == ["setuptools", *expected]


def test_every_default_requirement_is_pinned() -> None:
    """A requirement without a line in constraints.txt would be installed in any version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    expected = [*project["dependencies"], *extras["cluster"], *extras["s3"], "setuptools"]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in expected}
    assert {name.replace("_", "-") for name in names} - {name.replace("_", "-") for name in pinned} == set()


@pytest.mark.timeout(60)  # starts two interpreters and a build
def test_the_build_context_installs_and_runs_a_dry_search(context: Path, tmp_path: Path) -> None:
    """Installs as the last RUN does: without dependencies and with the installed setuptools."""
    copy, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(context, copy)
    build = "import setuptools.build_meta as b, sys; print(b.build_editable(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(site)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    script = (
        "import json, tune_rescon; from tune_rescon.search import main;"
        " code = main(['--space', 'digits', '--dry-run', '--plain']);"
        " print(json.dumps([code, tune_rescon.__file__]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, str(copy / "tune_rescon" / "__init__.py")]


def test_setup_commands_find_the_images_stamp_and_install_nothing(context: Path, tmp_path: Path) -> None:
    stamp = next(
        line
        for keyword, rest in instructions()
        if keyword == "RUN"
        for line in rest.split("&&")
        if "sha256" in line
    )
    subprocess.run(["bash", "-c", stamp.replace("/home/ray", str(tmp_path))], cwd=context, check=True)
    assert [str(rest) for keyword, rest in instructions() if keyword == "WORKDIR"] == [
        "/home/ray/tune_rescon_source",
        "/home/ray",
    ]
    expected = subprocess.run(
        ["bash", "-c", "cat pyproject.toml constraints.txt | sha256sum"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / ".tune_rescon_installed").read_text() == expected.stdout
    setup = (ROOT / "cluster.yaml").read_text()
    assert "wanted=$(cat pyproject.toml constraints.txt | sha256sum)" in setup
    assert "~/.tune_rescon_installed" in setup
