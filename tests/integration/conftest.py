"""The space and the options of a small search on digits, and a search of an earlier version."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import RunOptions, SearchFolder

#: A storage of an earlier version; tests/fixtures/README.md describes its origin.
OLD_SEARCH = Path(__file__).parents[1] / "fixtures" / "old_search.tar.xz"


def extract_old_search(storage: Path) -> SearchFolder:
    """Extract the search ``old`` of an earlier version into a storage."""
    with tarfile.open(OLD_SEARCH) as archive:
        archive.extractall(storage, filter="data")
    return SearchFolder(storage=storage, name="old")


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def options(tmp_path: Path, cache_root: Path) -> RunOptions:
    return RunOptions(name="s", storage=tmp_path / "runs", data_root=tmp_path / "data", cache_root=cache_root)


@pytest.fixture
def small_space() -> Space:
    """Six trials of at most nine epochs on digits, two at once."""
    return load_space("digits", ["budget.trials=6", "sampler.type=random"])
