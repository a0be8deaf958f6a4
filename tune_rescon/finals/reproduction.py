"""A published row as trainings, and what it came to beside what was published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import describe
from tune_rescon.finals.judging import Figure
from tune_rescon.finals.plan import finals_space
from tune_rescon.finals.published import PublishedRow
from tune_rescon.finals.recipes import find_recipe
from tune_rescon.spaces import Resources, Space
from tune_rescon.tuning import StudyResult, repeated

__all__ = ["Scaled", "Shares", "measured", "row_space", "scaled"]

#: Images of each class that a scaled training keeps at least: fewer say nothing at all.
LEAST_OF_A_CLASS = 10


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """How much of a published training is run."""

    epochs: int
    of_epochs: int
    images: int
    of_images: int
    test_images: int
    of_test_images: int

    @property
    def words(self) -> str:
        """What was scaled; nothing where nothing was.

        >>> Scaled(
        ...     epochs=2, of_epochs=205, images=500, of_images=50_000, test_images=500, of_test_images=10_000
        ... ).words
        '2 of 205 epochs, 500 of 50,000 images, 500 of 10,000 test images'
        """
        parts = (
            (self.epochs, self.of_epochs, "epochs"),
            (self.images, self.of_images, "images"),
            (self.test_images, self.of_test_images, "test images"),
        )
        return ", ".join(f"{some:,} of {every:,} {what}" for some, every, what in parts if some != every)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of a published training: 1 is all of it."""

    schedule: float
    images: float

    @property
    def suffix(self) -> str:
        """What tells a scaled training's name from a full one's.

        >>> Shares(schedule=1, images=1).suffix, Shares(schedule=0.1, images=0.05).suffix
        ('', '-0.1x0.05')
        """
        return "" if self.schedule == self.images == 1 else f"-{self.schedule:g}x{self.images:g}"


def scaled(row: PublishedRow, shares: Shares) -> Scaled:
    """What is run of a row: at least an epoch, on at least some images of each class.

    >>> from tune_rescon.finals.published import find_rows
    >>> scaled(find_rows(["rescon-cifar10-92-32"])[0], Shares(schedule=0.1, images=0.1)).words
    '1 of 10 epochs, 5,000 of 50,000 images, 5,000 of 10,000 test images'
    """
    of_epochs = find_recipe(row.recipe).epochs
    known = describe(DatasetConfig(name=row.dataset, hold_out=False), data_root=Path())
    least = LEAST_OF_A_CLASS * known.classes
    images = min(max(least, round(shares.images * known.train_images)), known.train_images)
    return Scaled(
        epochs=max(1, round(shares.schedule * of_epochs)),
        of_epochs=of_epochs,
        images=images,
        of_images=known.train_images,
        # `dataset.limit` holds for both.
        test_images=min(images, known.test_images),
        of_test_images=known.test_images,
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
    """What trains a row, as :func:`.finals_space` has it.

    Args:
        row: of a published table.
        name: of the trainings.
        shares: how much of the schedule, and of the training images.
        seeds: how many trainings.
        resources: of each.
        images: where the row's dataset lies, if not where it is downloaded to.
        overrides: ``KEY=VALUE`` of the space file.
    """
    part = scaled(row, shares)
    recipe = find_recipe(row.recipe)
    dataset = dataclasses.replace(
        images or DatasetConfig(name=row.dataset),
        label_noise=row.label_noise,
        limit=part.images if part.images != part.of_images else None,
    )
    return finals_space(
        name,
        [TrialConfig.from_dict({**recipe.settings, **row.settings, "preset": row.preset})],
        dataset=dataset,
        epochs=part.epochs,
        seeds=seeds,
        resources=resources,
        about=f"{row.name} of {row.table}: {recipe.about}. {part.words}".strip(),
        overrides=overrides,
    )


def measured(row: PublishedRow, result: StudyResult) -> Mapping[str, Figure]:
    """The published measures, as they came out; nothing if no training reached its end."""
    trials = [trial for group in repeated(result.trials) for trial in group]
    if not trials:
        return {}
    found = {}
    for name in row.figures:
        source = "test_accuracy" if name == "test_error" else name
        values = [trial.history.get(source, (math.nan,))[-1] for trial in trials]
        found[name] = Figure.of([100 * (1 - value) for value in values] if name == "test_error" else values)
    return found
