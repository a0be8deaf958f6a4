"""A study in memory, and searches on disk."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tuning.coordinating import Study
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation
from tune_rescon.tuning import SearchFolder, SearchLocation, StudyRecord

MakeSearch = Callable[..., SearchFolder]


@pytest.fixture
def record() -> StudyRecord:
    """The record of a new study in memory."""
    return Study().record()


@pytest.fixture
def location(tmp_path: Path) -> SearchLocation:
    return SearchLocation(
        storage=tmp_path / "runs", cache_root=tmp_path / "cache", data_root=tmp_path / "data"
    )


@pytest.fixture(scope="module")
def simulated_searches(tmp_path_factory: pytest.TempPathFactory) -> MakeSearch:
    """Run a small search, or only its first reports; each one once."""

    @functools.cache
    def make(name: str, *, reports: int | None, trials: int) -> SearchFolder:
        settings = ("initial=[]", f"budget.trials={trials}", "fidelity.max=3", "sampler.type=random")
        space, landscape = load_space("att92", settings), LANDSCAPES["monotone"]
        folder = SearchFolder(storage=tmp_path_factory.mktemp("simulated"), name=name)
        search = SimulatedSearch(space, folder=folder)
        simulation = Simulation(lambda t: landscape.curve(t.number, t.parameters))
        simulation.drive(search.policy(), reports=reports)
        return folder

    return make


@pytest.fixture
def make_search(tmp_path: Path, simulated_searches: MakeSearch) -> MakeSearch:
    """Copy a small search, or only its first reports, into ``runs/``."""

    def make(
        name: str, *, reports: int | None = None, storage: Path = tmp_path / "runs", trials: int = 6
    ) -> SearchFolder:
        simulated = simulated_searches(name, reports=reports, trials=trials)
        folder = SearchFolder(storage=storage, name=name)
        shutil.copytree(simulated.path, folder.path)
        return folder

    return make
