"""Present the finals as tables: on a terminal, in MLflow's note, and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tune_rescon.errors import counted
from tune_rescon.finals.evaluation import (
    CONFIDENCE,
    Estimate,
    EvaluatedConfig,
    Lead,
    evaluated_configs,
    evaluation_document,
)
from tune_rescon.finals.published import PUBLISHED, PublishedRow, Shares, measured, scaled
from tune_rescon.reporting import SearchPresentation, markdown_table
from tune_rescon.reporting.formatting import format_number, pairs
from tune_rescon.tuning import SearchFolder, StudyResult, write_atomically

__all__ = [
    "FinalsPresentation",
    "evaluation_rows",
    "print_evaluation",
    "print_published",
    "print_reproduction",
]

#: Number of classes of the best finalist that are printed: the worst ones if there are more.
CLASSES: Final = 10

_HEADINGS: Final = (
    "trials",
    "accuracy",
    "top-5",
    "loss",
    "calibration error",
    "params M",
    "GMACs",
    "images/s",
    "hours",
)


class FinalsPresentation(SearchPresentation):
    """Draws a search's page and plots, and writes the test results to its note and to ``finals.json``."""

    def note(self, result: StudyResult) -> str:
        """Return the table of the finalists, followed by the search's note."""
        found = evaluated_configs(result)
        lines = markdown_table(_HEADINGS, evaluation_rows(found)) if found else []
        return "\n".join([*lines, "", super().note(result)])

    def conclude(self, result: StudyResult, folder: SearchFolder) -> list[Path]:
        """Write ``finals.json`` and the search's documents; return their paths."""
        document = evaluation_document(result, evaluated_configs(result))
        path = folder.path / "finals.json"
        write_atomically(path, json.dumps(document, indent=2) + "\n")
        return [path, *super().conclude(result, folder)]


def evaluation_rows(found: Sequence[EvaluatedConfig]) -> list[tuple[str, ...]]:
    """Return the rows of the finalists under the table's headings, the best first."""
    return [
        (
            " ".join(str(trial.number) for trial in one.trials),
            *(
                _spread(one.figures[f"test_{name}"])
                for name in ("accuracy", "top5", "loss", "calibration_error")
            ),
            f"{one.params_m:.2f}",
            f"{one.gmacs:.3f}",
            f"{one.figures['test_images_per_second'].mean:.0f}",
            f"{one.hours:.3f}",
        )
        for one in found
    ]


def print_evaluation(result: StudyResult, console: Console) -> None:
    """Print the test results: a table, the best finalist by class, and a caution about its lead."""
    found = evaluated_configs(result)
    if not found:
        return
    title = f"{result.name}: {counted(len(found), 'finalist')} on the {_evaluation_images(result)}"
    table = Table(title=title, title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    for row in evaluation_rows(found):
        table.add_row(*row)
    console.print(table)
    console.print(_trainings(found))
    for place, one in enumerate(found, start=1):
        console.print(f"{place}. {pairs(one.trials[0].parameters)}", markup=False, soft_wrap=True)
    _print_classes(found[0], console)
    _print_caution(result, found, console)


def print_published(console: Console) -> None:
    """Print every row that can be reproduced."""
    table = Table(title="Published rows", title_justify="left")
    for heading in ("table", "row", "dataset", "network", "recipe", "published"):
        table.add_column(heading)
    for row in PUBLISHED:
        table.add_row(row.table, row.name, row.dataset, row.preset, row.recipe, _published(row))
    console.print(table)


def print_reproduction(found: Mapping[PublishedRow, StudyResult], shares: Shares, console: Console) -> None:
    """Print the published values beside the measured ones, and how far each training was scaled down.

    Args:
        found: the search of each row.
        shares: the fractions of the schedule and of the images that were used.
        console: the console to print to.
    """
    table = Table(title="Published and measured", title_justify="left")
    for heading in ("row", "published", "measured", "trainings", "scaled to"):
        table.add_column(heading, overflow="fold")
    for row, result in found.items():
        figures = measured(row, result)
        values = ", ".join(f"{_metric_title(name)} {_spread(value)}" for name, value in figures.items())
        trainings = max((len(value.values) for value in figures.values()), default=0)
        table.add_row(
            row.name, _published(row), values or "-", str(trainings), scaled(row, shares).note or "-"
        )
    console.print(table)


def _published(row: PublishedRow) -> str:
    return ", ".join(f"{_metric_title(name)} {format_number(value)}" for name, value in row.figures.items())


def _metric_title(name: str) -> str:
    return "test error %" if name == "test_error" else name.replace("_", " ")


def _print_classes(winner: EvaluatedConfig, console: Console) -> None:
    worst = sorted(winner.by_class.items(), key=lambda item: item[1].mean)[:CLASSES]
    of = f"worst {CLASSES} of {len(winner.by_class)}" if len(winner.by_class) > CLASSES else "all"
    classes = ", ".join(f"{name} {format_number(value.mean)}" for name, value in worst)
    console.print(f"The first one's accuracy by class ({of}): {classes}", markup=False, soft_wrap=True)


def _print_caution(result: StudyResult, found: Sequence[EvaluatedConfig], console: Console) -> None:
    if len(found) < 2:
        return
    console.print(
        f"The first of {len(found)} was chosen by these very images: expect slightly less of it.",
        soft_wrap=True,
    )
    first, second = (one.figures[result.metric] for one in found[:2])
    lead = Lead.of(first, second, maximize=result.maximize)
    if not lead.is_known:
        console.print(
            "One training of a network cannot distinguish a lead from the effect of the seed:"
            " train each several times (`--seeds 3`).",
            soft_wrap=True,
        )
    elif not lead.is_beyond_seeds:
        interval = f"{format_number(lead.difference)} ± {lead.margin:.2g} ({CONFIDENCE:.0%} interval)"
        console.print(
            f"Its lead on the second, {interval}, is within what the seed alone changes.", soft_wrap=True
        )


def _evaluation_images(result: StudyResult) -> str:
    """Return the images that evaluated the networks: validation images if the source has no test images."""
    dataset = result.space.dataset
    account = result.accounts.get(dataset.name)
    has_test = account is None or account.images["test"] or dataset.test_fraction is not None
    return "test images" if has_test else "validation images (there are no test images)"


def _trainings(found: Sequence[EvaluatedConfig]) -> str:
    """Return over how many trainings the means are; a configuration has fewer if some failed."""
    counts = sorted({len(one.trials) for one in found})
    if counts == [1]:
        return "One training each."
    several = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"Mean ± standard deviation over {several} trainings."


def _spread(value: Estimate) -> str:
    return format_number(value.mean) + (f" ± {value.spread:.2g}" if math.isfinite(value.spread) else "")
