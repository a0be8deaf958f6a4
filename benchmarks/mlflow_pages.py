"""Pages of MLflow's own UI, as 3.17 has them, and what a person clicks there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from browser import Browser, Page
from mlflow import MlflowClient
from mlflow.entities import Run

__all__ = ["Comparison", "RunsTable", "open_comparison", "open_runs", "trials_of"]

#: The names of the runs that the table shows, top down; its rows lie in the page in any order.
_NAMES = """
[...document.querySelectorAll('.ag-row')]
  .filter(row => row.querySelector('a'))
  .sort((one, other) => one.ariaRowIndex - other.ariaRowIndex)
  .map(row => row.querySelector('a').innerText)
"""

#: Plotly's own account of what it has drawn.
_AXES = """
(document.querySelector('.js-plotly-plot')?.data?.[0]?.dimensions ?? [])
  .map(axis => ({name: axis.label, values: [...axis.values], words: axis.ticktext ?? []}))
"""

#: The names that are written above the axes.
_TITLES = "[...document.querySelectorAll('.js-plotly-plot .axis-title')].map(title => title.textContent)"

#: The lists of the comparison, and the options of one: those in sight, for it holds no others.
_LIST = "document.querySelectorAll('.du-bois-light-select')[{index}]"
_OPTIONS = (
    f"(document.getElementById({_LIST}.querySelector('input').id + '_list')?"
    ".closest('.du-bois-light-select-dropdown'))"
)

#: A list opens when the button goes down.
_OPEN = """
['mousedown', 'mouseup', 'click'].forEach(kind =>
  {list}.querySelector('.du-bois-light-select-selector')
    .dispatchEvent(new MouseEvent(kind, {{bubbles: true}})))
"""

#: Down by less than an open list is high; the next look sees what has come into sight.
_SCROLL = "void ({options}.querySelector('.rc-virtual-list-holder').scrollTop += 100)"


@dataclass(frozen=True, kw_only=True)
class RunsTable:
    """An experiment's table of runs."""

    page: Page

    def names(self) -> list[str]:
        """The runs in sight, top down."""
        names: list[str] = self.page.evaluate(_NAMES)
        return names

    def expand(self, name: str) -> None:
        """Click the box before a run that has child runs."""
        rows = "[...document.querySelectorAll('.ag-row')]"
        row = f"{rows}.find(row => row.querySelector('a')?.innerText === '{name}')"
        self.page.evaluate(f"{row}.querySelector('[col-id*=\"Run Name\"] button').click()")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The page that compares runs, on its first tab: parallel coordinates."""

    page: Page

    def titles(self) -> list[str]:
        """The names above the axes, from the left."""
        titles: list[str] = self.page.evaluate(_TITLES)
        return titles

    def axes(self) -> list[dict[str, Any]]:
        """Of each axis its ``name``, the ``values`` of the runs that are drawn, and its ``words`` if any."""
        axes: list[dict[str, Any]] = self.page.evaluate(_AXES)
        return axes

    def choose_parameter(self, name: str) -> None:
        """Have an axis for it, or none any more."""
        self._choose(name, 0)

    def choose_metric(self, name: str) -> None:
        """Have an axis for its last value, or none any more."""
        self._choose(name, 1)

    def _choose(self, name: str, index: int) -> None:
        """Click ``name`` in the list, and wait for the plot."""
        had = name in self.titles()
        chosen, options = _LIST.format(index=index), _OPTIONS.format(index=index)
        if not self.page.evaluate(f"{chosen}.matches('.du-bois-light-select-open')"):
            self.page.evaluate(_OPEN.format(list=chosen))
            self.page.wait_for(f"!!{options}")
        option = f"{options}.querySelector('.du-bois-light-select-item-option[title=\"{name}\"]')"
        self.page.wait_for(f"!!{option} || {_SCROLL.format(options=options)}")
        self.page.evaluate(f"{option}.click()")
        self.page.wait_for(f"{_TITLES}.includes('{name}') !== {json.dumps(had)}")


def open_runs(browser: Browser, uri: str, runs: Sequence[Run]) -> RunsTable:
    """The table of the experiment that ``runs`` are in, once it has rows."""
    page = browser.open(f"{uri}/#/experiments/{runs[0].info.experiment_id}/runs")
    page.wait_for(f"{_NAMES}.length > 0")
    return RunsTable(page=page)


def open_comparison(
    browser: Browser, uri: str, runs: Sequence[Run], *, width: int = 1280, height: int = 900
) -> Comparison:
    """The page that compares ``runs`` (the button above the table leads there), once its plot is drawn."""
    chosen = {
        "runs": [run.info.run_id for run in runs],
        "experiments": [runs[0].info.experiment_id],
    }
    words = "&".join(f"{key}={quote(json.dumps(value))}" for key, value in chosen.items())
    page = browser.open(f"{uri}/#/compare-runs?{words}", width=width, height=height)
    page.wait_for(f"{_TITLES}.length > 0")
    return Comparison(page=page)


def trials_of(uri: str, search: str) -> list[Run]:
    """The child runs of a search, by trial number."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`tune_rescon.search` = '{search}'")
    children = [run for run in found if "tune_rescon.trial" in run.data.tags]
    return sorted(children, key=lambda run: int(run.data.tags["tune_rescon.trial"]))
