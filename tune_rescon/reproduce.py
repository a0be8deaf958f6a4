"""``python -m tune_rescon.reproduce``: train the rows of published tables again, in full or in part.

Exit: 0 done; 1 a row failed; 2 bad usage or data; 130 interrupted (the same command resumes).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tune_rescon.command import INTERRUPTED, run_command
from tune_rescon.command_options import (
    OptionsCommand,
    address_option,
    data_root_option,
    plain_option,
    set_option,
    storage_option,
    tracking_uri_option,
)
from tune_rescon.errors import DataError, StorageError, format_error

if TYPE_CHECKING:
    from rich.console import Console

    from tune_rescon.config import DatasetConfig
    from tune_rescon.finals import PublishedRow, Shares
    from tune_rescon.spaces import Space
    from tune_rescon.tuning import RunOptions, SearchLocation, StudyResult

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        reproduce,
        argv,
        name="tune_rescon.reproduce",
        what="The reproduction",
        interrupted="Interrupted. The same command continues.",
    )


@click.command(
    cls=OptionsCommand,
    groups={
        "What is trained": ["--all", "--scale", "--data-scale", "--seeds", "--images", "--set"],
        "Where it runs and is kept": ["--storage", "--tracking-uri", "--data-root", "--address"],
        "Output": ["--plain"],
    },
)
@click.argument("rows", metavar="[ROW|TABLE]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every row of every table.")
@click.option(
    "--scale",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Train this share of the schedule on this share of the images.",
)
@click.option(
    "--data-scale",
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of the images, if it differs [default: that of --scale].",
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of each row.")
@click.option(
    "--images", metavar="DIR|ZIP", help="The rows' images, train/CLASS/* and test/CLASS/*, if not downloaded."
)
@storage_option
@tracking_uri_option
@data_root_option
@address_option
@set_option("Change a key of the spaces.")
@plain_option
def reproduce(
    rows: tuple[str, ...],
    every: bool,
    scale: float,
    data_scale: float | None,
    seeds: int,
    images: str | None,
    storage: str | None,
    tracking_uri: str | None,
    data_root: str | None,
    address: str | None,
    settings: tuple[str, ...],
    plain: bool,
) -> int:
    """Train rows of the published tables again, and print the published and the measured values.

    Without ROW or TABLE, the rows are listed. A row that has finished is not trained again.
    """
    from tune_rescon.finals import PUBLISHED, Shares, find_rows
    from tune_rescon.reporting import open_console
    from tune_rescon.tuning import RunOptions, SearchLocation, resolve_data_root, resolve_storage

    if every and rows:
        raise click.UsageError("--all trains every row; give it without ROW and TABLE.")
    chosen = PUBLISHED if every else find_rows(rows)
    data = resolve_data_root(data_root)
    location = SearchLocation(storage=resolve_storage(storage), data_root=data)
    with open_console(plain=plain) as console:
        if not chosen:
            from tune_rescon.finals import print_published

            print_published(console)
            return 0
        source = _images(images, chosen)
        shares = Shares(schedule=scale, images=data_scale or scale)
        options = RunOptions(
            name="reproduce",
            storage=location.storage,
            tracking_uri=tracking_uri,
            data_root=location.data_root,
            address=address,
            show_progress=console.is_interactive,
            divert_output=True,
        )
        run = _Reproduction(
            location=location,
            options=options,
            shares=shares,
            seeds=seeds,
            images=source,
            settings=settings,
            console=console,
        )
        codes = []
        for row in chosen:
            codes.append(run.train(row))
            if codes[-1] == INTERRUPTED:
                break
        run.print_table(chosen)
    return max(codes)


def _images(path: str | None, rows: Sequence[PublishedRow]) -> DatasetConfig | None:
    """Return the dataset at ``path`` (or URL), which all rows then use, or None if ``path`` is None.

    Raises:
        DataError: the rows are of more than one dataset.
    """
    from tune_rescon.config import DatasetConfig

    if path is None:
        return None
    datasets = sorted({row.dataset for row in rows})
    if len(datasets) > 1:
        rule = "all rows must be of one dataset"
        hint = "Run the rows of each dataset with a separate command."
        raise DataError(format_error(rule, got=f"rows of {', '.join(datasets)}", where="--images", hint=hint))
    return DatasetConfig(name="folder", path=path)


@dataclass(frozen=True, kw_only=True)
class _Reproduction:
    """Trains rows one after the other. Each row is a separate search, which is resumed if it has begun."""

    location: SearchLocation
    options: RunOptions
    """The options of every row's search, except its name and whether it resumes."""
    shares: Shares
    seeds: int
    images: DatasetConfig | None
    settings: Sequence[str]
    console: Console

    def train(self, row: PublishedRow) -> int:
        """Train a row, or resume its training, and return the exit code."""
        from tune_rescon.finals import FinalsPresentation, check_images, print_evaluation
        from tune_rescon.reporting import resume_command, run_with_display

        known = self._result(row)
        if known is not None and len(known.trials) >= self.seeds and known.state.value == "finished":
            self._check_same(known, self._space(row))
            return 0
        self.console.print(f"{row.table}, {row.name}", markup=False)
        space = self._space(row)
        if self.images is not None and (message := check_images(row, space.dataset, self.location.data_root)):
            self.console.print(message, markup=False, soft_wrap=True)
        options = dataclasses.replace(self.options, name=self._name(row), resume=known is not None)
        return run_with_display(
            space,
            options,
            self.console,
            resume=resume_command(options, "tune_rescon.train"),
            presentation=FinalsPresentation(),
            show_result=print_evaluation,
        )

    def _check_same(self, known: StudyResult, space: Space) -> None:
        """Check that the finished trainings of a row had the images and settings of ``space``.

        Raises:
            StorageError: the images or settings differ.
        """
        from tune_rescon.tuning.prepare import with_absolute_paths, with_store_size
        from tune_rescon.tuning.resume import space_changes

        space = with_store_size(with_absolute_paths(space), known.space)
        # These do not change a trained value. Fewer seeds are a part of those that were trained.
        free = ("name", "description", "budget", "resources_per_trial", "initial")
        space = space.model_copy(update={key: getattr(known.space, key) for key in free})
        changes = space_changes(known.space, space)
        if changes:
            rule = "a row that has finished must keep its images and settings"
            hint = f"Give another --storage, or remove {known.folder}, to train it again."
            got = "; ".join(changes)
            raise StorageError(format_error(rule, got=got, where=known.name, hint=hint))

    def print_table(self, rows: Sequence[PublishedRow]) -> None:
        """Print the published values beside the measured ones, for the rows that have finished."""
        from tune_rescon.finals import print_reproduction

        results = {row: result for row in rows if (result := self._result(row)) is not None}
        print_reproduction(results, self.shares, self.console)

    def _result(self, row: PublishedRow) -> StudyResult | None:
        """Return the row's trainings so far; None if they have not begun."""
        from tune_rescon.tuning import read_search
        from tune_rescon.tuning.search_storage import has_begun

        name = self._name(row)
        return read_search(self.location, name) if has_begun(self.location, name) else None

    def _name(self, row: PublishedRow) -> str:
        return f"reproduce-{row.name}{self.shares.suffix}"

    def _space(self, row: PublishedRow) -> Space:
        from tune_rescon.finals import local_resources, row_space

        return row_space(
            row,
            name=self._name(row),
            shares=self.shares,
            seeds=self.seeds,
            resources=local_resources(),
            images=self.images,
            overrides=self.settings,
        )


if __name__ == "__main__":
    sys.exit(main())
