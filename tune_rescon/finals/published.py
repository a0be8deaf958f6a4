"""The published tables of these networks, each row with the settings that reproduce it.

Sources: Wang et al., "Residual Attention Network for Image Classification", CVPR 2017, tables 1 and 3 to 6
(test error on CIFAR, per cent); ResCon's README (losses after 10 epochs).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import describe
from tune_rescon.errors import ConfigError, DataError, format_error, unknown_name_message
from tune_rescon.finals.evaluation import Estimate
from tune_rescon.finals.plan import TrainingPlan, finals_space, find_recipe
from tune_rescon.reporting.formatting import format_number
from tune_rescon.spaces import Resources, Space
from tune_rescon.tuning import StudyResult, repeated

__all__ = [
    "PUBLISHED",
    "PublishedRow",
    "Scaled",
    "Shares",
    "check_images",
    "find_rows",
    "measured",
    "print_published",
    "print_reproduction",
    "row_space",
    "scaled",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class PublishedRow:
    """One row of a published table."""

    name: str
    table: str
    """``paper-1``, ``paper-3`` ... ``paper-6``, or ``rescon``."""
    dataset: str
    preset: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrialConfig that differ from the preset and the recipe."""
    label_noise: float = 0.0
    """Fraction of the training images with a wrong label."""
    figures: Mapping[str, float]
    """Published values: ``test_error`` (per cent, top-1), ``train_loss``, ``test_loss``."""


def find_rows(names: Sequence[str]) -> tuple[PublishedRow, ...]:
    """Return the rows with these names and those of the tables with these names, in the order of the tables.

    >>> [row.name for row in find_rows(["paper-1"])]
    ['attention56-mixed', 'attention56-channel', 'attention56-spatial']

    Raises:
        ConfigError: no row or table has one of the names; the message lists the known names.
    """
    tables = list(dict.fromkeys(row.table for row in PUBLISHED))
    known = [row.name for row in PUBLISHED]
    for name in names:
        if name not in (*tables, *known):
            raise ConfigError(unknown_name_message("row", name, [*tables, *known], where="ROW"))
    return tuple(row for row in PUBLISHED if row.name in names or row.table in names)


def _paper(table: int, name: str, error: float, **changes: Any) -> PublishedRow:
    """Return a row on CIFAR-10 by the paper's recipe, changed by ``changes``."""
    given = {"dataset": "cifar10", "recipe": "paper", **changes}
    return PublishedRow(name=name, table=f"paper-{table}", figures={"test_error": error}, **given)


def _attention_types() -> Iterator[PublishedRow]:
    """Yield table 1: mixed, channel and spatial attention (section 3.2's f1, f2, f3)."""
    for kind, error in (("mixed", 5.52), ("channel", 6.24), ("spatial", 6.33)):
        settings = {"attention": kind}
        yield _paper(1, f"attention56-{kind}", error, preset="cifar_attention56", settings=settings)


def _attention_learning() -> Iterator[PublishedRow]:
    """Yield table 3: attention residual learning, (1 + M) * T, against naive attention learning, M * T."""
    errors = {56: (5.52, 5.89), 92: (4.99, 5.35), 128: (4.44, 5.57), 164: (4.31, 7.18)}
    for depth, pair in errors.items():
        for kind, error in zip(("arl", "nal"), pair, strict=True):
            preset, settings = f"cifar_attention{depth}", {"attention_learning": kind}
            yield _paper(3, f"attention{depth}-{kind}", error, preset=preset, settings=settings)


def _mask_structures() -> Iterator[PublishedRow]:
    """Yield table 4: a mask of local convolutions against one of encoder and decoder."""
    for mask, error in (("local", 6.48), ("encoder_decoder", 5.52)):
        name = f"attention56-{mask.replace('_', '-')}"
        yield _paper(4, name, error, preset="cifar_attention56", settings={"mask": mask})


def _label_noise() -> Iterator[PublishedRow]:
    """Yield table 5: a fraction of the training labels is wrong."""
    for percent, error in ((10, 5.15), (30, 5.79), (50, 7.27), (70, 15.75)):
        noise = percent / 100
        yield _paper(5, f"attention92-noise{percent}", error, preset="cifar_attention92", label_noise=noise)


def _depths() -> Iterator[PublishedRow]:
    """Yield table 6: CIFAR-10 and CIFAR-100.

    At depth 452 this network has 10.2 M parameters, while the paper states 8.6 M.
    """
    errors = {92: (4.99, 21.71), 236: (4.14, 21.16), 452: (3.90, 20.45)}
    for depth, pair in errors.items():
        for dataset, error in zip(("cifar10", "cifar100"), pair, strict=True):
            preset = f"cifar_attention{depth}"
            yield _paper(6, f"attention{depth}-{dataset}", error, preset=preset, dataset=dataset)


def _rescon() -> Iterator[PublishedRow]:
    """Yield ResCon's six rows: 10 epochs on batches of 16; losses, not accuracies."""
    losses = {
        ("cifar100", 92, 32): (1.26, 1.58),
        ("cifar10", 92, 32): (0.51, 0.53),
        ("cifar100", 56, 224): (1.42, 1.80),
        ("cifar10", 56, 224): (0.61, 0.65),
        ("cifar100", 92, 224): (2.95, 2.90),
        ("cifar10", 92, 224): (1.12, 1.01),
    }
    for (dataset, depth, size), (train, test) in losses.items():
        yield PublishedRow(
            name=f"rescon-{dataset}-{depth}-{size}",
            table="rescon",
            dataset=dataset,
            preset=f"rescon_attention{depth}_{size}",
            recipe="rescon",
            figures={"train_loss": train, "test_loss": test},
        )


PUBLISHED: Final[tuple[PublishedRow, ...]] = (
    *_rescon(),
    *_attention_types(),
    *_attention_learning(),
    *_mask_structures(),
    *_label_noise(),
    *_depths(),
)


#: Minimum number of images of each class in a scaled training; with fewer, the result is noise.
LEAST_OF_A_CLASS = 10


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """How much of a published training is run."""

    epochs: int
    limit: int | None
    """``dataset.limit``: the number of training images, and of test images if there are more; None: all."""
    note: str
    """The scaled numbers for the user; empty if nothing was scaled."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Fractions of a published training to run; 1 is all of it."""

    schedule: float
    images: float

    @property
    def suffix(self) -> str:
        """Suffix that distinguishes a scaled training's name from a full one's.

        >>> Shares(schedule=1, images=1).suffix, Shares(schedule=0.1, images=0.05).suffix
        ('', '-0.1x0.05')
        """
        return "" if self.schedule == self.images == 1 else f"-{self.schedule:g}x{self.images:g}"


def scaled(row: PublishedRow, shares: Shares) -> Scaled:
    """Return how much of a row is run: at least one epoch, on at least some images of each class.

    >>> from tune_rescon.finals.published import find_rows
    >>> scaled(find_rows(["rescon-cifar10-92-32"])[0], Shares(schedule=0.1, images=0.1)).note
    '1 of 10 epochs, 5,000 of 50,000 images, 5,000 of 10,000 test images'
    """
    all_epochs = find_recipe(row.recipe).epochs
    epochs = max(1, round(shares.schedule * all_epochs))
    dataset = describe(DatasetConfig(name=row.dataset, hold_out=False), data_root=Path())
    least = LEAST_OF_A_CLASS * dataset.classes
    images = min(max(least, round(shares.images * dataset.train_images)), dataset.train_images)
    counts = (
        (epochs, all_epochs, "epochs"),
        (images, dataset.train_images, "images"),
        (min(images, dataset.test_images), dataset.test_images, "test images"),
    )
    return Scaled(
        epochs=epochs,
        limit=images if images < dataset.train_images else None,
        note=", ".join(f"{used:,} of {total:,} {unit}" for used, total, unit in counts if used != total),
    )


def row_space(
    row: PublishedRow,
    *,
    name: str,
    shares: Shares,
    seeds: int,
    resources: Resources,
    images: DatasetConfig | None = None,
    overrides: Sequence[str] = (),
) -> Space:
    """Return the space that trains a row, built by :func:`.finals_space`.

    Args:
        row: the row of a published table.
        name: name of the search that trains it.
        shares: fractions of the schedule and of the training images.
        seeds: number of trainings.
        resources: resources of each training.
        images: the dataset of the row's images, if they are not where datasets are downloaded to.
        overrides: ``KEY=VALUE`` pairs that change the space file.
    """
    part = scaled(row, shares)
    recipe = find_recipe(row.recipe)
    dataset = dataclasses.replace(
        images or DatasetConfig(name=row.dataset),
        label_noise=row.label_noise,
        limit=part.limit,
    )
    return finals_space(
        name,
        [TrialConfig.from_dict({**recipe.settings, **row.settings, "preset": row.preset})],
        TrainingPlan(epochs=part.epochs, seeds=seeds, resources=resources),
        dataset=dataset,
        about=f"{row.name} of {row.table}: {recipe.about}. {part.note}".strip(),
        overrides=overrides,
    )


def check_images(row: PublishedRow, dataset: DatasetConfig, data_root: Path) -> str | None:
    """Check that a user's images have as many classes as those of a row.

    Args:
        row: the row of a published table.
        dataset: the user's images.
        data_root: the directory of downloaded archives.

    Returns:
        A message for the user if other classes or numbers show that they are not the row's images, else None.

    Raises:
        DataError: the number of classes differs, or the images cannot be listed.
    """
    given = describe(dataset, data_root=data_root)
    named = DatasetConfig(name=row.dataset, limit=dataset.limit, hold_out=False)
    expected = describe(named, data_root=data_root)
    if given.classes != expected.classes:
        rule = f"must be the images of {row.dataset}, which have {expected.classes} classes"
        raise DataError(format_error(rule, got=f"{given.classes} classes", where="--images"))
    counts = [
        (given.train_images, expected.train_images, "training images"),
        (given.test_images, expected.test_images, "test images"),
    ]
    differences = [
        f"{found:,} {unit} and not {wanted:,}" for found, wanted, unit in counts if found != wanted
    ]
    if {name.casefold() for name in given.class_names} != set(expected.class_names):
        names = (", ".join(info.class_names[:3]) for info in (given, expected))
        differences.append("the classes {}, ... and not {}, ...".format(*names))
    if not differences:
        return None
    return f"These images are not those of {row.dataset}: {'; '.join(differences)}"


def measured(row: PublishedRow, result: StudyResult) -> Mapping[str, Estimate]:
    """Return the measured values of the published metrics; empty if no training has finished."""
    trials = [trial for group in repeated(result.trials) for trial in group]
    if not trials:
        return {}
    found = {}
    for name in row.figures:
        source = "test_accuracy" if name == "test_error" else name
        values = [trial.history.get(source, (math.nan,))[-1] for trial in trials]
        found[name] = Estimate.of([100 * (1 - value) for value in values] if name == "test_error" else values)
    return found


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
        values = ", ".join(f"{_metric_title(name)} {value}" for name, value in figures.items())
        trainings = max((len(value.values) for value in figures.values()), default=0)
        table.add_row(
            row.name, _published(row), values or "-", str(trainings), scaled(row, shares).note or "-"
        )
    console.print(table)


def _published(row: PublishedRow) -> str:
    return ", ".join(f"{_metric_title(name)} {format_number(value)}" for name, value in row.figures.items())


def _metric_title(name: str) -> str:
    return "test error %" if name == "test_error" else name.replace("_", " ")
