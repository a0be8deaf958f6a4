"""``python -m tune_rescon.predict``: what a trained network says of pictures, and what it attends to.

Exit: 0 done; 2 no such model or path, or a file that is no picture (the others are told); 130 interrupted.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tune_rescon.command import print_line, run_command
from tune_rescon.errors import StorageError, explain

if TYPE_CHECKING:
    from torch import nn

    from tune_rescon.training import TrainedNetwork
    from tune_rescon.using import Pictures, Prediction

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    return run_command(predict, argv, name="tune_rescon.predict", what="The prediction")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", metavar="MODEL")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--storage", metavar="DIR|URL", help="Where searches are kept, also s3://... [default: ./runs]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Classes of each picture.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--masks",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also draw what each attention module attends to: a PNG for each picture, and index.html.",
)
def predict(
    model: str,
    paths: tuple[Path, ...],
    storage: str | None,
    as_json: bool,
    as_csv: bool,
    top: int,
    batch_size: int,
    device: str,
    masks: Path | None,
) -> int:
    """Classify the pictures at each PATH (a file or a folder) by MODEL.

    MODEL is a search's name, models:/NAME@ALIAS, or a checkpoint.
    """
    from tune_rescon.storage import parse_storage
    from tune_rescon.using import batches_of, find_pictures

    if as_json and as_csv:
        raise click.UsageError("Give one of --json and --csv.")
    files = find_pictures(paths)
    print_line(f"Loading {model}", err=True)
    # Imported after the first line: they bring torch and Optuna.
    from tune_rescon.training.placement import place as place_on
    from tune_rescon.tuning import Place, default_storage
    from tune_rescon.using import load_model, predictions

    where = Place(storage=parse_storage(storage) if storage else default_storage())
    network, about = load_model(model, where)
    if about.stored_side is None:
        side = about.spec.image_size
        click.echo(
            "An earlier version saved this network without its preprocessing: pictures are scaled straight to"
            f" {side} pixels, which may differ a little from validation.",
            err=True,
        )
    placement = place_on(device, precision=about.config.precision)
    bad: list[Path] = []

    def on_bad(path: Path, why: str) -> None:
        bad.append(path)
        click.echo(f"{path}: no picture ({why})", err=True)

    batches: Iterable[Pictures] = batches_of(files, about, batch_size=batch_size, on_bad=on_bad)
    if masks is not None:
        batches = _drawing(batches, network, about, masks)
    found = predictions(network, about, batches, placement, top=top)
    form = "json" if as_json else "csv" if as_csv else "table"
    _print(_shown(found, len(files)), form)
    if masks is not None:
        click.echo(f"Masks: {masks / 'index.html'}", err=True)
    return 2 if bad else 0


def _shown(found: Iterator[Prediction], total: int) -> Iterator[Prediction]:
    """With a bar, where somebody looks at one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(found, total=total, description="pictures")


def _print(found: Iterator[Prediction], form: str) -> None:
    if form == "json":
        for one in found:
            name, probability = one.best
            line = {"path": str(one.path), "class": name, "probability": probability}
            if len(one.classes) > 1:
                line["top"] = [{"class": name, "probability": value} for name, value in one.classes]
            click.echo(json.dumps(line))
        return
    rows = ((str(one.path), name, value) for one in found for name, value in one.classes)
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("path", "class", "probability"))
        writer.writerows(rows)
        return
    table = Table()
    for column in ("path", "class", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for path, name, value in rows:
        table.add_row(path, name, f"{value:.4f}")
    Console(highlight=False).print(table)


def _drawing(
    batches: Iterable[Pictures], network: nn.Module, about: TrainedNetwork, folder: Path
) -> Iterator[Pictures]:
    """The same batches, each of whose pictures is drawn with its masks first."""
    from tune_rescon.training.classifier import Classifier
    from tune_rescon.using import attention_maps, draw_maps, index_page, pixels

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = "must be a folder that can be written"
        raise StorageError(explain(rule, got=f"{folder} ({error.strerror})", where="--masks")) from error
    drawn: list[tuple[str, str]] = []
    for batch in batches:
        device = next(network.parameters()).device
        maps = attention_maps(Classifier(network, about).eval().to(device), pixels(batch, about, device))
        for row, path in enumerate(batch.paths):
            file = f"{len(drawn):04d}-{path.stem}.png"
            draw_maps(folder / file, batch.images_BHWC[row], maps, row)
            drawn.append((file, str(path)))
        yield batch
    (folder / "index.html").write_text(index_page(drawn), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
