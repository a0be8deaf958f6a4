"""The Dockerfile and its context, without Docker: what is copied, what is installed, and as which user."""

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

ROOT = Path(__file__).resolve().parents[2]

#: Bytes of a context that is sent to a builder without a thought.
SMALL = 8 * 2**20


def instructions() -> list[tuple[str, str]]:
    """The instructions and their arguments; continued lines are joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    words = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(keyword, rest.strip()) for keyword, _, rest in words]


def copied() -> list[str]:
    """The sources of every COPY, from the context."""
    return [
        word
        for keyword, rest in instructions()
        if keyword == "COPY"
        for word in shlex.split(rest)[:-1]
        if not word.startswith("--")
    ]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file into the context: the last pattern of it or its folders decides."""
    sent = True
    names = path.split("/")
    above = ["/".join(names[: count + 1]) for count in range(len(names))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if any(_fits(pattern, each) for each in above):
            sent = line.startswith("!")
    return sent


def _fits(pattern: str, path: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a builder receives."""
    folder = tmp_path_factory.mktemp("context")
    for top in ROOT.iterdir():
        for path in [top] if top.is_file() else top.rglob("*") if is_sent(top.name) else []:
            name = str(path.relative_to(ROOT))
            if path.is_file() and is_sent(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
    return folder


def test_the_build_context_has_the_copied_files_only(context: Path) -> None:
    sources = copied()
    assert {"pyproject.toml", "constraints.txt", "tune_rescon", "search_spaces"} <= set(sources)
    assert sorted(path.name for path in context.iterdir()) == sorted(sources)
    files = [path for path in context.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SMALL
    assert not [path for path in files if path.suffix == ".pyc"]


@pytest.mark.parametrize(
    "name", [".git/config", ".venv/bin/python", "runs/a/study.db", "data/x", "tests/a.py"]
)
def test_large_and_private_files_are_not_in_the_build_context(name: str) -> None:
    assert not is_sent(name)


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
    """The Python of the RUN that lists what is installed."""
    run = next(rest for keyword, rest in instructions() if keyword == "RUN" and "requirements.txt" in rest)
    words = shlex.split(run)
    return words[words.index("-c") + 1]


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
    wanted = [
        *project["dependencies"],
        *(r for e in extras.split() for r in project["optional-dependencies"][e]),
    ]
    assert done.stdout.splitlines() == ["setuptools", *wanted]


def test_every_default_requirement_is_pinned() -> None:
    """Directly: a new requirement without a line in constraints.txt would come in any version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [*project["dependencies"], *extras["cluster"], *extras["s3"], "setuptools"]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in wanted}
    assert {name.replace("_", "-") for name in names} - {name.replace("_", "-") for name in pinned} == set()


@pytest.mark.timeout(60)  # two interpreters and a build
def test_the_build_context_installs_and_runs_a_dry_search(context: Path, tmp_path: Path) -> None:
    """As the last RUN does: without dependencies, which this environment has, and with its setuptools."""
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
    wanted = subprocess.run(
        ["bash", "-c", "cat pyproject.toml constraints.txt | sha256sum"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / ".tune_rescon_installed").read_text() == wanted.stdout
    setup = (ROOT / "cluster.yaml").read_text()
    assert "wanted=$(cat pyproject.toml constraints.txt | sha256sum)" in setup
    assert "~/.tune_rescon_installed" in setup
