"""``python -m tune_rescon.predict``: classify pictures by a trained network, and draw its attention masks.

Exit: 0 done; 2 unknown model or path, a file that is not a picture, or a picture for which the network gives
no probabilities (the other files are still classified); 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress

from tune_rescon.command import print_line, run_command
from tune_rescon.command_options import OptionsCommand, storage_option, study_option
from tune_rescon.csv_cells import csv_line
from tune_rescon.errors import counted
from tune_rescon.paths import check_output_folder, expanded_path

if TYPE_CHECKING:
    from torch import nn

    from tune_rescon.inference import Prediction
    from tune_rescon.training import TrainedNetwork

__all__ = ["main"]

#: Number of pictures whose masks are in memory at once.
_MASKS_BATCH: Final = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        predict,
        argv,
        name="tune_rescon.predict",
        what="The prediction",
        interrupted="Interrupted. The predictions that were printed and the masks that were drawn are kept.",
    )


@click.command(
    cls=OptionsCommand,
    groups={
        "Output": ["--json", "--csv", "--top", "--masks"],
        "How": ["--tta", "--batch-size", "--device", "--storage", "--study"],
    },
)
@click.argument("model", metavar="MODEL")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@storage_option
@study_option("The study's database, if MODEL is a search that was started with --study.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option(
    "--top", type=click.IntRange(1), default=1, show_default=True, help="Number of classes per picture."
)
@click.option(
    "--tta",
    type=click.Choice(["none", "flip"]),
    default="none",
    show_default=True,
    help="Test-time augmentation. flip: the mean of the probabilities of a picture and its mirror image.",
)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--masks",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Draw the attention of each module: panels, overlays on the picture, and index.html.",
)
def predict(
    model: str,
    paths: tuple[Path, ...],
    storage: str | None,
    study: str | None,
    as_json: bool,
    as_csv: bool,
    top: int,
    tta: str,
    batch_size: int,
    device: str,
    masks: Path | None,
) -> int:
    """Classify the pictures at each PATH (a file or a folder) by MODEL.

    MODEL is a search's name, models:/NAME@ALIAS, or a checkpoint.
    """
    from tune_rescon.inference import batches_of, find_pictures

    if as_json and as_csv:
        raise click.UsageError("Give one of --json and --csv.")
    files = find_pictures(paths)
    if masks is not None:
        masks = expanded_path(masks, where="--masks")
        check_output_folder(masks, where="--masks")
    print_line(f"Loading {model}", err=True)
    # Imported after the first line of output, because these modules import torch and Optuna.
    from tune_rescon.data.opening import zero_end_message
    from tune_rescon.inference import check_has_masks, load_model, predictions
    from tune_rescon.training.device import resolve_device
    from tune_rescon.tuning import SearchLocation, resolve_storage

    location = SearchLocation(storage=resolve_storage(storage), study_url=study)
    network, about = load_model(model, location)
    if masks is not None:
        check_has_masks(about)
        masks.mkdir(parents=True, exist_ok=True)
    if about.stored_side is None:
        side = about.spec.image_size
        click.echo(
            "An earlier version saved this network without its preprocessing: pictures are scaled straight to"
            f" {side} pixels, which may differ a little from validation.",
            err=True,
        )
    placement = resolve_device(device, precision=about.config.precision)
    bad: list[Path] = []
    zero_ends: list[str] = []
    deep: list[Path] = []

    def on_bad(path: Path, why: str) -> None:
        bad.append(path)
        print_line(f"{path}: not a picture ({why})", err=True)

    def on_nan(path: Path) -> None:
        bad.append(path)
        print_line(f"{path}: no prediction (the network returns nan instead of probabilities)", err=True)

    batches = batches_of(
        files,
        about,
        batch_size=batch_size,
        on_bad=on_bad,
        on_zero_end=lambda path: zero_ends.append(str(path)),
        on_deep=deep.append,
    )
    classified: list[Path] = []
    with _bar("pictures", len(files)) as (follow, echo):
        mirrored = tta == "flip"
        predicted = predictions(network, about, batches, placement, top=top, mirrored=mirrored, on_nan=on_nan)
        row = None if as_json else _csv_row if as_csv else _table_row(files, about)
        if row is not None:
            echo(row("path", "class", "probability"))
        for prediction in follow(predicted):
            classified.append(prediction.path)
            if row is None:
                echo(_json(prediction, tta))
                continue
            for name, value in prediction.classes:
                echo(row(str(prediction.path), name, str(value) if as_csv else f"{value:.4f}"))
    if (message := zero_end_message(zero_ends)) is not None:
        print_line(message, err=True)
    if deep:
        print_line(
            f"{counted(len(deep), 'picture')} of more than 8 bits ({deep[0]}): the training pictures had 8,"
            " so 0 to 65535 (of floats, 0 to 1) became 0 to 255. Values of a smaller range are nearly black.",
            err=True,
        )
    if masks is not None and classified:
        _draw(network, about, classified, masks)
    return 2 if bad else 0


#: ``Follow`` yields the items of an iterable and advances the bar. ``Echo`` prints a line of output.
Follow = Callable[[Iterable[Any]], Iterator[Any]]
Echo = Callable[[str], object]


@contextmanager
def _bar(description: str, total: int) -> Iterator[tuple[Follow, Echo]]:
    """Show a progress bar on a terminal; yield a function that advances it, and one that prints a line.

    A line goes to standard output. If the bar is there too, one console writes both, because two consoles
    would overwrite each other.
    """
    screen = Console(highlight=False, soft_wrap=True) if sys.stdout.isatty() else Console(stderr=True)
    is_on_stdout = sys.stdout.isatty() and screen.is_terminal
    with Progress(
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
        # If True, rich would redirect the output to the console of the bar.
        redirect_stdout=False,
        redirect_stderr=sys.stderr.isatty(),
    ) as progress:

        def follow(items: Iterable[Any]) -> Iterator[Any]:
            yield from progress.track(items, total=total, description=description)

        def echo(line: str) -> None:
            if is_on_stdout:
                screen.print(line, markup=False, emoji=False)
            else:
                click.echo(line)

        yield follow, echo


def _json(prediction: Prediction, tta: str) -> str:
    name, probability = prediction.best
    line: dict[str, Any] = {"path": str(prediction.path), "class": name, "probability": probability}
    if tta != "none":
        line["tta"] = tta
    if len(prediction.classes) > 1:
        line["top"] = [{"class": name, "probability": value} for name, value in prediction.classes]
    return json.dumps(line)


def _csv_row(*cells: str) -> str:
    return csv_line(cells).removesuffix("\n")


def _table_row(files: Sequence[Path], about: TrainedNetwork) -> Callable[[str, str, str], str]:
    """Return a function that formats a row; the widths are those of the longest path and class name."""
    paths = max(cell_len(str(path)) for path in files)
    classes = max(cell_len(name) for name in (*about.class_names, "class"))

    def row(path: str, name: str, probability: str) -> str:
        return f"{_padded(path, paths)}  {_padded(name, classes)}  {probability}"

    return row


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _draw(network: nn.Module, about: TrainedNetwork, files: Sequence[Path], folder: Path) -> None:
    """Draw the masks of pictures that were classified."""
    from tune_rescon.inference import PAGE, batches_of, draw_gallery

    print_line(f"Drawing the masks of {counted(len(files), 'picture')}: {folder / PAGE}", err=True)
    # Files that are not pictures were reported when the pictures were classified.
    batches = batches_of(files, about, batch_size=_MASKS_BATCH, on_bad=lambda *_: None)
    with (
        _bar("masks", len(files)) as (follow, _),
        closing(draw_gallery(network, about, batches, folder)) as drawn,
    ):
        for _path in follow(drawn):
            pass


if __name__ == "__main__":
    sys.exit(main())
