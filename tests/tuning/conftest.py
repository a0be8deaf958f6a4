"""A study in memory, and searches on disk."""

from __future__ import annotations

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


@pytest.fixture
def make_search(tmp_path: Path) -> MakeSearch:
    """Run a small search in ``runs/``, or only its first reports."""

    def make(
        name: str, *, reports: int | None = None, storage: Path = tmp_path / "runs", trials: int = 6
    ) -> SearchFolder:
        settings = ("initial=[]", f"budget.trials={trials}", "fidelity.max=3", "sampler.type=random")
        space, landscape = load_space("att92", settings), LANDSCAPES["monotone"]
        folder = SearchFolder(storage=storage, name=name)
        search = SimulatedSearch(space, folder=folder)
        simulation = Simulation(lambda t: landscape.curve(t.number, t.parameters))
        simulation.drive(search.policy(), reports=reports)
        return folder

    return make
