"""MLflow's UI on the runs of a search: trials are nested under their search, and can be compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Page
from mlflow_pages import open_comparison, open_runs, trials_of
from mlflow_server import MlflowServer

from tune_rescon.reporting import SearchPresentation
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, SimulatedSearch, Simulation
from tune_rescon.tuning import SearchFolder, SearchLocation, sync_tracking

pytestmark = [pytest.mark.browser, pytest.mark.server, pytest.mark.nightly]

TRIALS = 8
NAMES = [f"trial_{number:04d}" for number in range(TRIALS)]
SERVER_ERROR = "log: Failed to load resource: the server responded with a status of 5"
SPACE = load_space(
    "att92", ["initial=[]", f"budget.trials={TRIALS}", "fidelity.max=9", "sampler.type=random"]
)


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server with the runs of a simulated search."""
    storage = tmp_path_factory.mktemp("ui")
    shutil.copy(empty_store, storage / "mlflow.db")
    search = SimulatedSearch(SPACE, folder=SearchFolder(storage=storage, name="s"))
    simulation = Simulation(lambda t: LANDSCAPES["monotone"].curve(t.number, t.parameters))
    simulation.drive(search.policy())
    location = SearchLocation(storage=storage, cache_root=storage / "cache", data_root=storage / "data")
    done = sync_tracking(location, "s", timeout=60, present=lambda _: SearchPresentation())
    assert done.pending_updates == 0
    mlflow_server = MlflowServer(storage)
    mlflow_server.start()
    yield mlflow_server
    mlflow_server.kill()


def page_errors(page: Page) -> list[str]:
    """Errors of the page, without the 404s: MLflow requests resources that a server may not have."""
    return [
        text for text in page.complaints() if text.startswith(("exception:", "console.error", SERVER_ERROR))
    ]


def test_trials_are_nested_under_their_search(chromium: Browser, server: MlflowServer) -> None:
    table = open_runs(chromium, server.uri, trials_of(server.uri, "s"))
    # The trials are hidden until the search is expanded, so MLflow treats them as its children.
    assert table.names() == ["s"]
    table.expand("s")
    table.page.wait_for(f"document.body.innerText.includes('{NAMES[-1]}')")
    first, *below = table.names()
    assert (first, sorted(below)) == ("s", NAMES)
    assert page_errors(table.page) == []
    table.page.close()


def test_parallel_coordinates_have_every_trial_and_the_searched_parameters(
    chromium: Browser, server: MlflowServer
) -> None:
    trials = trials_of(server.uri, "s")
    comparison = open_comparison(chromium, server.uri, trials)
    # MLflow starts with three of the parameters that differ between the runs, so fixed ones are left out.
    assert set(comparison.titles()[:-1]) < set(SPACE.parameters)
    for name in set(SPACE.parameters) - set(comparison.titles()):
        comparison.choose_parameter(name)
    axes = {axis["name"]: axis for axis in comparison.axes()}
    assert set(axes) > set(SPACE.parameters)
    assert set(comparison.titles()) == set(axes)
    # MLflow leaves out a run without a value on some axis, so an inactive parameter has the value `none`.
    inactive = sum(run.data.params["depth"] == "56" for run in trials)
    assert 0 < inactive < TRIALS
    assert {name: len(axis["values"]) for name, axis in axes.items()} == dict.fromkeys(axes, TRIALS)
    assert len(axes["drop_path"]["words"]) == 1 + TRIALS - inactive
    assert "none" in axes["drop_path"]["words"]
    assert page_errors(comparison.page) == []
    comparison.page.close()
