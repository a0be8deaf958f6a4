"""One Ray for the tests that run in this process, with its own directory; commands start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import RunOptions
from tune_rescon.tuning.execution.cluster import ray_session


@pytest.fixture(scope="session")
def ray_here(short_tmp: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_tmp))
        with ray_session(None):
            yield


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
