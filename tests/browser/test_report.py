"""report.html in a browser: every plot is drawn, in both themes, on small screens, without a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from browser import Browser, Page

from tune_rescon.config import TrialState
from tune_rescon.reporting import write_report
from tune_rescon.spaces import load_space
from tune_rescon.testing import LANDSCAPES, Assignment, SimulatedSearch, Simulation, SyntheticCurve
from tune_rescon.tuning import SearchState, StudyResult, best_trial

pytestmark = pytest.mark.browser

OpenReport = Callable[..., Page]

PAGE_IS_COMPLETE = "document.documentElement?.dataset.complete === 'yes'"

#: Finds plots without a line, point or bar.
EMPTY_PLOTS = """
[...document.querySelectorAll('.chart')]
  .filter(chart => !chart.querySelector('path.js-line, path.point, .points path, .bars path'))
  .map(chart => chart.id)
"""

#: Finds elements that overflow the screen and are not inside a scrolling box.
OVERFLOWING = """
[...document.querySelectorAll('body *')]
  .filter(item => item.getBoundingClientRect().right > innerWidth + 1 && !item.closest('.wide, .rows'))
  .map(item => item.outerHTML.slice(0, 80))
"""


def simulate_search(trials: int = 60) -> StudyResult:
    settings = ("initial=[]", f"budget.trials={trials}", "fidelity.max=9", "sampler.type=random")
    space, landscape = load_space("att92", settings), LANDSCAPES["diverging"]

    def curve(trial: Assignment) -> SyntheticCurve:
        base = landscape.curve(trial.number, trial.parameters)
        return dataclasses.replace(base, crashes_at=2) if trial.number % 9 == 4 else base

    simulation = Simulation(curve, workers=8)
    search = SimulatedSearch(space, clock=simulation.clock)
    simulation.drive(search.policy())
    return search.result(Path("runs") / "att92")


@pytest.fixture(scope="module")
def search_result() -> StudyResult:
    return simulate_search()


def open_page(
    chromium: Browser,
    folder: Path,
    result: StudyResult,
    *compared: StudyResult,
    width: int = 1280,
    dark: bool = False,
) -> Page:
    """Write the report of a search to a folder, and open it."""
    path = folder / "report.html"
    write_report(result, path, compared=compared)
    page = chromium.open(path.as_uri(), width=width, dark=dark)
    page.wait_for(PAGE_IS_COMPLETE)
    return page


@pytest.fixture
def open_report(chromium: Browser, tmp_path: Path) -> OpenReport:
    return partial(open_page, chromium, tmp_path)


def luminance(page: Page, element: str) -> float:
    """Luminance of an element's background, from 0 (black) to 255 (white)."""
    color = str(page.evaluate(f"getComputedStyle(document.querySelector('{element}')).backgroundColor"))
    red, green, blue = (int(part) for part in color.strip("rgb()").split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def axis_text_color(page: Page) -> str:
    """Text color of the first plot's axis."""
    return str(page.evaluate("getComputedStyle(document.querySelector('.chart .xtick text')).fill"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_plot_is_drawn_without_browser_errors(
    width: int, dark: bool, search_result: StudyResult, open_report: OpenReport
) -> None:
    other = dataclasses.replace(search_result, name="other")
    page = open_report(search_result, other, width=width, dark=dark)
    count = page.evaluate("document.querySelectorAll('.chart').length")
    # Curves, coordinates, five slices, importance, rungs, three costs, slots, speed, and the comparison.
    assert count == 15
    assert page.evaluate("document.documentElement.dataset.drawn") == f"{count}/{count}"
    assert page.evaluate(EMPTY_PLOTS) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    assert (luminance(page, "body") < 60) == dark
    assert page.complaints() == []
    page.close()


def all_failed(result: StudyResult) -> StudyResult:
    trials = tuple(
        dataclasses.replace(t, state=TrialState.FAILED, values=(), history={}, times_ms=(), error="no")
        for t in result.trials
    )
    return dataclasses.replace(result, trials=trials, best=None, best_config={})


def without_history_and_costs(result: StudyResult) -> StudyResult:
    """The result of an early version, which recorded neither the history nor the model size."""
    trials = tuple(dataclasses.replace(t, history={}, times_ms=()) for t in result.trials)
    costs = {n: dataclasses.replace(c, params_m=math.nan, gmacs=math.nan) for n, c in result.costs.items()}
    return dataclasses.replace(result, trials=trials, costs=costs)


def one_trial(result: StudyResult) -> StudyResult:
    trials = result.trials[:1]
    return dataclasses.replace(result, trials=trials, best=best_trial(trials))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda r: dataclasses.replace(r, trials=(), best=None), id="no trial"),
        pytest.param(one_trial, id="one trial"),
        pytest.param(all_failed, id="all failed"),
        pytest.param(without_history_and_costs, id="old record"),
        pytest.param(lambda r: dataclasses.replace(r, state=SearchState.RUNNING), id="running"),
    ],
)
def test_page_is_complete_for_every_search_outcome(
    change: Callable[[StudyResult], StudyResult], search_result: StudyResult, open_report: OpenReport
) -> None:
    page = open_report(change(search_result), width=390)
    assert page.evaluate(EMPTY_PLOTS) == []
    assert page.evaluate(OVERFLOWING) == []
    assert page.complaints() == []
    page.close()


@pytest.fixture(scope="module")
def page(
    search_result: StudyResult, chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """A page for the tests below, which click on different things. To draw it takes seconds."""
    page = open_page(chromium, tmp_path_factory.mktemp("page"), search_result)
    yield page
    page.close()


def test_theme_button_switches_to_dark_mode(page: Page) -> None:
    before = axis_text_color(page)
    page.evaluate("document.getElementById('theme').click()")
    page.wait_for(f"getComputedStyle(document.querySelector('.chart .xtick text')).fill !== '{before}'")
    assert luminance(page, "body") < 60
    assert page.complaints() == []


def test_clicking_a_heading_sorts_the_table(page: Page) -> None:
    numbers = (
        "[...document.querySelectorAll('table.sortable tbody tr')].map(row => +row.cells[0].textContent)"
    )
    ranked = page.evaluate(numbers)
    click = "document.querySelector('table.sortable th button').click()"
    page.evaluate(click)
    assert page.evaluate(numbers) == sorted(ranked)
    page.evaluate(click)
    assert page.evaluate(numbers) == sorted(ranked, reverse=True)
    assert ranked != sorted(ranked)
