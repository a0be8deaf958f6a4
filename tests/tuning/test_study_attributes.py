"""The commit of a search: that of a checkout of this project, not of a repository around it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import tune_rescon
from tune_rescon.tuning.study_attributes import commit_tags, provenance

COMMIT = "mlflow.source.git.commit"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def without_git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the user's git settings, and those of a hook of this repository."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def create_repository(folder: Path, project: str | None = None) -> Path:
    """Create a repository with a commit, and with the files of the project ``project``."""
    package = folder / "tune_rescon"
    package.mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "README.md").touch()
    if project is not None:
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
        (package / "tuning").mkdir()
        (package / "tuning" / "study.py").write_text("a = 1\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", str(folder))
    return folder


@pytest.fixture
def our_repository(tmp_path: Path) -> Path:
    return create_repository(tmp_path / "ours", "tune_rescon")


def test_commit_tags_have_the_commit_and_whether_the_package_changed(our_repository: Path) -> None:
    package = our_repository / "tune_rescon"
    clean = {COMMIT: git(our_repository, "rev-parse", "HEAD"), "tune_rescon.dirty": "false"}
    assert commit_tags(package) == clean
    (our_repository / "README.md").write_text("changed, and no part of the package")
    (package / "mine.py").touch()
    assert commit_tags(package) == clean
    (package / "tuning" / "study.py").write_text("a = 2\n")
    assert commit_tags(package) == clean | {"tune_rescon.dirty": "true"}


def install_wheel(repository: Path) -> Path:
    package = repository / ".venv" / "lib" / "python3.13" / "site-packages" / "tune_rescon"
    package.mkdir(parents=True)
    return package


def unpack_archive(repository: Path) -> Path:
    """Create our files without our repository, as from an archive."""
    package = repository / "vendor" / "ours" / "tune_rescon"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text('[project]\nname = "tune_rescon"\n')
    return package


def unpack_with_broken_repository(repository: Path) -> Path:
    """Create our files with an invalid ``.git``, which makes git search the parent folders."""
    package = unpack_archive(repository)
    (package.parent / ".git").mkdir()
    return package


@pytest.mark.parametrize(
    "put_package",
    [
        pytest.param(install_wheel, id="wheel"),
        pytest.param(unpack_archive, id="archive"),
        pytest.param(unpack_with_broken_repository, id="broken repository"),
        pytest.param(lambda repository: repository / "tune_rescon", id="top of the repository"),
    ],
)
@pytest.mark.parametrize("project", [None, "theirs"])
def test_a_surrounding_repository_is_ignored(
    put_package: Callable[[Path], Path], project: str | None, tmp_path: Path
) -> None:
    assert commit_tags(put_package(create_repository(tmp_path / "theirs", project))) == {}


def test_a_repository_named_by_the_environment_is_not_asked(
    our_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = create_repository(tmp_path / "theirs", "theirs")
    commit = git(our_repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(repository))
    monkeypatch.setenv("GIT_INDEX_FILE", str(repository / ".git" / "index"))
    assert commit_tags(our_repository / "tune_rescon") == {COMMIT: commit, "tune_rescon.dirty": "false"}
    assert commit_tags(install_wheel(repository)) == {}


def test_a_submodule_and_a_worktree_have_their_own_commit(our_repository: Path, tmp_path: Path) -> None:
    repository = create_repository(tmp_path / "theirs", "theirs")
    git(repository, "submodule", "--quiet", "add", str(our_repository), "sub")
    git(repository, "commit", "-qm", "a submodule")
    git(our_repository, "worktree", "add", "-q", str(tmp_path / "tree"))
    commit = git(our_repository, "rev-parse", "HEAD")
    for package in (repository / "sub" / "tune_rescon", tmp_path / "tree" / "tune_rescon"):
        assert commit_tags(package)[COMMIT] == commit


def test_a_checkout_of_another_user_has_its_commit(
    our_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(our_repository, "rev-parse", "HEAD")
    # With this variable git treats every folder as that of another user.
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        git(our_repository, "rev-parse", "HEAD")
    assert "dubious ownership" in refused.value.stderr
    assert commit_tags(our_repository / "tune_rescon")[COMMIT] == commit


def test_without_a_commit_or_without_git_there_are_no_tags(
    tmp_path: Path, our_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "-q")
    shutil.copy(our_repository / "pyproject.toml", tmp_path / "new")
    assert commit_tags(tmp_path / "new" / "tune_rescon") == {}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_tags(our_repository / "tune_rescon") == {}


def test_a_search_has_the_tags_of_the_package_that_runs() -> None:
    package = Path(tune_rescon.__file__).parent
    if not (package.parent / ".git").exists():
        pytest.skip("an unpacked source archive has no commit")
    assert provenance({})[COMMIT] == git(package, "rev-parse", "HEAD")
