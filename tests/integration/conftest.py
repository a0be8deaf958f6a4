"""A small search of digits, and where it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import RunOptions


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
