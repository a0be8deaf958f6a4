"""``python -m tune_rescon.export``: write a trained network to a file for other tools.

Exit: 0 done; 2 unknown model or format, or the file cannot be written; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from tune_rescon.command import print_line, run_command
from tune_rescon.command_options import OptionsCommand, storage_option, study_option
from tune_rescon.errors import counted
from tune_rescon.paths import expanded_path

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(export, argv, name="tune_rescon.export", what="The export")


@click.command(
    cls=OptionsCommand,
    groups={"What is written": ["--format", "--output"], "Where the model is": ["--storage", "--study"]},
)
@click.argument("model", metavar="MODEL")
@click.option(
    "--format",
    "form",
    required=True,
    metavar="FORMAT",
    help="safetensors (weights); timm (a folder for timm.create_model); torch-export, onnx or tensorflow"
    " (pixels in 0..1 in, probabilities out).",
)
@click.option(
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The file to write; for tensorflow and timm a folder.",
)
@storage_option
@study_option("The study's database, if MODEL is a search that was started with --study.")
def export(model: str, form: str, output: Path, storage: str | None, study: str | None) -> int:
    """Write the network of MODEL (a search's name, models:/NAME@ALIAS, or a checkpoint) to FILE."""
    print_line(f"Loading {model}", err=True)
    # Imported after the first line of output, because these modules import torch and Optuna.
    from tune_rescon.inference import check_export, export_model, load_model, timm_transform_message
    from tune_rescon.tuning import SearchLocation, resolve_storage

    output = expanded_path(output, where="--output")
    check_export(form, output)
    location = SearchLocation(storage=resolve_storage(storage), study_url=study)
    network, about = load_model(model, location)
    difference = export_model(network, about, form=form, output=output)
    side, channels = about.spec.image_size, len(about.mean)
    click.echo(
        f"{output}: {_bytes(output) / 1e6:.1f} MB, {counted(len(about.class_names), 'class', 'classes')},"
        f" pixels {channels} x {side} x {side}; loaded again, its probabilities differ by at most"
        f" {difference:.1g}"
    )
    if form == "timm" and (message := timm_transform_message(about)) is not None:
        click.echo(message)
    return 0


def _bytes(output: Path) -> int:
    inside = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    return sum(path.stat().st_size for path in inside)


if __name__ == "__main__":
    sys.exit(main())
