"""report.html: one file that a browser opens without a network, in a light or dark theme, also on a phone.

plotly.js draws the plots, which are plain dictionaries (:mod:`.charts`, :mod:`.search_charts`). All else is a
Jinja template that escapes every text (``assets/page.html``). The file includes plotly.js, a style sheet and
a small script. The page of ``report --errors`` shares the style and the tables of mistakes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from tune_rescon.errors import counted
from tune_rescon.reporting.charts import Chart, importance_bars, learning_curves, parallel_coordinates, slices
from tune_rescon.reporting.formats import (
    COMPARISON_HEADINGS,
    comparison_row,
    differences,
    headings,
    ranked,
    row,
)
from tune_rescon.reporting.formatting import (
    STATE_COLOUR,
    duration,
    format_device_hours,
    format_hours,
    format_number,
    format_speed,
    pairs,
    setting_text,
    value_text,
)
from tune_rescon.reporting.hours import (
    Savings,
    device_hours,
    named_device,
    reserved_hours,
    savings,
    spent_unit,
)
from tune_rescon.reporting.incumbents import Incumbent, grouping, groups
from tune_rescon.reporting.search_charts import (
    costs,
    gantt,
    group_curves,
    incumbent_curves,
    speed_steps,
    survival_bars,
    utilisation_steps,
)
from tune_rescon.reporting.summary import (
    best_command,
    failures,
    shared_epoch,
    values_at,
    winner_messages,
)
from tune_rescon.reporting.timeline import GpuUse, Throughput, gpu_use, throughput, timeline
from tune_rescon.tuning import (
    SearchFolder,
    SearchState,
    StudyResult,
    parameter_importance,
    write_atomically,
)

__all__ = ["mistakes_page", "panels", "render_page", "write_report"]

_LOGGER = logging.getLogger(__name__)

#: Seconds after which the browser reloads the page of a running search.
REFRESH: Final = 60

#: Maximum number of trials that a cell lists.
MAX_LISTED: Final = 20

#: A table with more rows is laid out only while it is visible.
LONG_TABLE: Final = 50

#: Runs before the page is shown, so that a page that the user set to dark does not flash.
_THEME: Final = (
    'try{const t=sessionStorage.getItem("theme");if(t)document.documentElement.dataset.theme=t}'
    "catch{/* a browser that stores nothing */}"
)


def write_report(result: StudyResult, path: Path, *, compared: Sequence[StudyResult] = ()) -> None:
    """Write the report of a search to ``path`` atomically.

    Args:
        result: the search.
        path: the file to write.
        compared: other searches to compare with it.
    """
    write_atomically(path, render_page(result, compared=compared, written=datetime.now().astimezone()))


def render_page(result: StudyResult, *, compared: Sequence[StudyResult] = (), written: datetime) -> str:
    """Return the page as text.

    The page loads nothing from a network. While the search runs, the browser reloads the page every minute.
    A page without plots does not include plotly.js.

    Args:
        result: the search.
        compared: other searches to compare with it.
        written: the time of writing, which the page shows.
    """
    results = [result, *compared] if compared else []
    all_panels = [*([_comparison(results)] if compared else []), *panels(result)]
    # The table of trials is below the learning curves, the first panel of a search.
    above = 2 if compared else 1
    charts = [chart for panel in all_panels for chart in panel.charts]
    command = best_command(result)
    return _template("page.html").render(
        result=result,
        written=written,
        refresh=REFRESH if result.state is SearchState.RUNNING else None,
        cards=_cards(result),
        winner=result.best,
        winner_note=_winner_note(result),
        winner_messages=winner_messages(result),
        command=command,
        compared=results,
        differences=differences(results) if results else [],
        panels_above=all_panels[:above],
        panels_below=all_panels[above:],
        headings=headings(result),
        rows=[(trial, row(result, trial)) for trial in ranked(result)],
        mistakes=_mistakes(result),
        failures=failures(result),
        images=[f"{name}: {line}" for name, account in result.accounts.items() for line in account.lines()],
        figures=_figures(charts),
        library=Markup(get_plotlyjs()) if charts else "",
    )


def mistakes_page(mistakes: Mapping[str, Any], *, title: str) -> str:
    """Return the page of the mistakes of a network as text.

    Args:
        mistakes: the result of :func:`.mistakes_document`.
        title: the title of the page.
    """
    return _template("mistakes.html").render(mistakes=mistakes, title=title)


@cache
def _template(name: str) -> Template:
    loader = FunctionLoader(_asset)
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    environment.filters |= {
        "comparison_row": comparison_row,
        "listed_numbers": _listed_numbers,
        "setting": setting_text,
        "pairs": pairs,
    }
    environment.globals |= {
        "colour": STATE_COLOUR,
        "comparison_headings": COMPARISON_HEADINGS,
        "long": LONG_TABLE,
        "script": Markup(_asset("page.js")),
        "style": Markup(_asset("style.css")),
        "theme": Markup(_THEME),
    }
    return environment.get_template(name)


def _cards(result: StudyResult) -> Iterator[tuple[str, str]]:
    """Yield the most important figures, each with its caption."""
    best, saved, slots = result.best, savings(result), timeline(result)
    ended = sum(trial.state.is_final for trial in result.trials)
    if best is not None:
        yield format_number(best.value), f"{result.metric} of trial {best.number}, epoch {best.value_epoch}"
    yield f"{ended} / {max(result.space.budget.trials, len(result.trials))}", "trials ended"
    yield f"{saved.epochs}", "epochs run"
    if saved.epochs_saved:
        yield f"{saved.share:.0%}", f"epochs saved, about {_saved_hours(saved)}"
    yield from ((format_hours(hours), f"{unit} reserved") for unit, hours in reserved_hours(result).items())
    by_kind = device_hours(result)
    if len(by_kind) > 1:
        yield from ((duration(hours * 3600), f"on {kind}") for kind, hours in by_kind.items())
    if slots.stretches:
        yield f"{slots.utilisation:.0%}", f"utilisation of {counted(slots.slots, 'slot')}"


def _hours(hours: float, result: StudyResult) -> str:
    return format_device_hours({spent_unit(result): hours})


def _saved_hours(saved: Savings) -> str:
    hours = {unit: each for unit, each in saved.hours_saved.items() if each}
    return format_device_hours(hours or saved.hours_saved)


class _Mistake(BaseModel):
    """One image that the network predicts incorrectly."""

    model_config = ConfigDict(strict=True)

    label: str
    predicted: str
    probability: float = Field(allow_inf_nan=False)
    picture: str


class _Mistakes(BaseModel):
    """The file of :func:`.write_mistakes`."""

    model_config = ConfigDict(strict=True)

    trial: int
    epoch: int
    words: str
    wrong: NonNegativeInt
    class_names: list[str]
    confusion: list[list[NonNegativeInt]]
    pairs: list[tuple[str, str, int, int]]
    classes: tuple[tuple[str, str, str, str, str], ...] = ()
    """An earlier version did not write them."""
    worst: list[_Mistake]


def _mistakes(result: StudyResult) -> _Mistakes | None:
    """Return the mistakes of the best network; None if the search's folder does not have them, or not all.

    If a resume found a better network since, the file has the mistakes of another one, and None is returned.
    """
    path = SearchFolder(storage=result.folder.parent, name=result.folder.name).mistakes_json
    if result.best is None or not path.is_file():
        return None
    try:
        mistakes = _Mistakes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        _LOGGER.warning("%s cannot be read: %s", path, error)
        return None
    is_square = {len(mistakes.class_names)} >= {len(mistakes.confusion), *map(len, mistakes.confusion)}
    if mistakes.confusion and not is_square:
        _LOGGER.warning("%s has a confusion matrix of other classes", path)
        return None
    network = (mistakes.trial, mistakes.epoch)
    return mistakes if network == (result.best.number, result.best.value_epoch) else None


def _winner_note(result: StudyResult) -> str:
    note = f"{value_text(result.best)}." if result.best else ""
    if not result.front:
        return note
    numbers = ", ".join(str(trial.number) for trial in result.front)
    return f"{note} Pareto front of {result.metric} against {result.against}, the cheapest first: {numbers}."


def _listed_numbers(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:MAX_LISTED]))
    return listed if len(numbers) <= MAX_LISTED else f"{listed} and {len(numbers) - MAX_LISTED} more"


def _figures(charts: Sequence[Chart]) -> Markup:
    text = json.dumps(
        {chart.key: chart.to_dict() for chart in charts}, separators=(",", ":"), allow_nan=False
    )
    # A "<" in the text could end the script element that contains it.
    return Markup(text.replace("<", "\\u003c"))


@cache
def _asset(name: str) -> str:
    return files("tune_rescon.reporting").joinpath("assets", name).read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One or more plots under a heading."""

    heading: str
    note: str
    """Explanation of the plots, in a sentence or two."""
    charts: Sequence[Chart]
    lines: Sequence[str] = ()
    """A list above the plots."""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    """A table above the plots."""
    half: bool = False
    """True: two such panels share a row if there is room."""


def panels(result: StudyResult) -> Iterator[Panel]:
    """Yield the panels that have data, the learning curves first; no panel before the first epoch."""
    if not any(trial.epochs for trial in result.trials):
        return
    yield Panel(
        heading="Learning curves",
        note="Each line is a trial; its dot is its last epoch. Dotted lines are rungs."
        " Click a legend entry to hide it, double-click to show it alone.",
        charts=[learning_curves(result)],
    )
    yield from _by_group(result)
    yield from _by_parameter(result)
    yield Panel(
        heading="Rungs",
        note=_rung_note(result),
        lines=result.scheduling,
        charts=[survival_bars(result)],
        half=not result.scheduling,
    )
    yield Panel(
        heading=f"{result.metric} against cost",
        note="The value of each trial, coloured by final state. Circled: the Pareto front of the trials with"
        " the most epochs.",
        charts=costs(result),
    )
    slots, speed, use = timeline(result), throughput(result), gpu_use(result)
    if slots.stretches:
        yield Panel(
            heading="Slots",
            note=f"At most {counted(slots.slots, 'trial')} ran at once. Epochs ran in {slots.utilisation:.0%}"
            f" of the slots' time, over {duration(slots.seconds)} without the times when no driver ran."
            f"{_speed_note(result, speed) if speed else ''}{_use_note(use) if use else ''}",
            charts=[
                gantt(slots),
                *([speed_steps(slots, speed)] if speed else []),
                *([utilisation_steps(slots, use)] if use and use.levels else []),
            ],
        )


def _comparison(results: Sequence[StudyResult]) -> Panel:
    """Return the panel that compares several searches."""
    return Panel(
        heading="Best so far",
        note="The best trial so far of each search: most epochs first, then best value.",
        charts=[incumbent_curves(results)],
    )


def _by_group(result: StudyResult) -> Iterator[Panel]:
    """Yield the panel that compares networks, or other groups of trials, at equal cost."""
    compared, name = groups(result), grouping(result)
    if not compared or name is None:
        return
    shared = min(group.hours for group in compared)
    within = _hours(shared, result)
    yield Panel(
        heading=f"By {name.replace('_', ' ')}",
        note=f"Compare them at equal cost: at the dotted line, {within}, the least that was spent on any of"
        " them. Values of trials with different numbers of epochs are compared.",
        headings=(name, "trials", "epochs", "spent", "best", f"best within {within}"),
        rows=[
            (
                setting_text(name, group.value),
                str(group.trials),
                str(group.epochs),
                _hours(group.hours, result),
                _incumbent_text(group.best[-1] if group.best else None),
                _incumbent_text(group.best_within(shared)),
            )
            for group in compared
        ],
        charts=[group_curves(result, name, compared, shared)],
    )


def _incumbent_text(best: Incumbent | None) -> str:
    return "-" if best is None else f"{format_number(best.value)} (trial {best.number}, epoch {best.epoch})"


def _by_parameter(result: StudyResult) -> Iterator[Panel]:
    """Yield the panels that need values at a shared epoch."""
    epoch = shared_epoch(result)
    if not epoch:
        return
    values = values_at(result, epoch)
    after = f"after epoch {epoch}, where {counted(len(values), 'trial has', 'trials have')} a value"
    if plots := slices(result, values):
        yield Panel(
            heading="Parallel coordinates",
            note=f"Each line is a trial, coloured by its {result.metric} {after}. Click a class to hide it.",
            charts=[parallel_coordinates(result, values, epoch)],
        )
        yield Panel(heading="Slices", note=f"{result.metric} {after}, coloured by final state.", charts=plots)
    shares = parameter_importance(result.space, {t.number: t for t in result.trials}, values)
    if shares:
        yield Panel(
            heading="Importance",
            note=f"Importance for reaching the best tenth of the trials after epoch {epoch} (PED-ANOVA)."
            " Trials outside the present space do not count.",
            charts=[importance_bars(shares)],
            half=True,
        )


def _speed_note(result: StudyResult, speed: Throughput) -> str:
    device = named_device(result.trials, result.device)
    each = f"each of {speed.devices} {device}s" if speed.devices > 1 else f"the {device}"
    average = "" if speed.per_device is None else f" {format_speed(speed.per_device)} on average for {each},"
    return f" Training images per second:{average} {format_speed(speed.one_trial)} in a trial."


def _use_note(use: GpuUse) -> str:
    busy = "" if use.utilisation is None else f" In epochs the GPU ran kernels for {use.utilisation:.0%}."
    shares = ", ".join(f"{cause} {share:.1%}" for cause, share in use.shares.items())
    return f"{busy} Of the slots' time: {shares}; the rest is training steps."


def _rung_note(result: StudyResult) -> str:
    saved = savings(result)
    if not saved.epochs_saved:
        return "Trials that reached each rung; no trial was stopped early."
    return (
        f"Early stopping saved {saved.epochs_saved} of {counted(saved.epochs + saved.epochs_saved, 'epoch')}"
        f" ({saved.share:.0%}), about {_saved_hours(saved)}."
    )
