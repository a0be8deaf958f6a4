"""A folder of pictures with their masks, and a page of them that grows as they are drawn."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Final

from torch import nn

from tune_rescon.errors import StorageError, explain
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.weights import Classifier
from tune_rescon.tuning import write_atomically
from tune_rescon.using.images import Pictures
from tune_rescon.using.masks import (
    DrawnPicture,
    ModuleMaps,
    attention_maps,
    draw_maps,
    draw_overlay,
    index_page,
    load_photograph,
    seen_box,
)
from tune_rescon.using.predicting import pixels

__all__ = ["PAGE", "draw_gallery", "make_gallery"]

#: The page's name in the folder.
PAGE: Final = "index.html"

#: Characters of a picture's name that its drawings keep: file names have an end.
_LONGEST_STEM: Final = 100


def make_gallery(folder: Path) -> None:
    """Make the folder, before any picture is classified.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        rule = "must be a folder that can be written"
        raise StorageError(explain(rule, got=f"{folder} ({error.strerror})", where="--masks")) from error


def draw_gallery(
    network: nn.Module, about: TrainedNetwork, batches: Iterable[Pictures], folder: Path
) -> Generator[Path, None, None]:
    """Draw every picture of the batches, and yield its path as soon as its files are there.

    The page is written after each batch, and when the iterator is closed or interrupted: it names all files
    that are there by then.

    Args:
        network: on any device, in eval mode.
        about: what goes with it.
        batches: the pictures.
        folder: exists.
    """
    classifier = Classifier(network, about).eval()
    drawn: list[DrawnPicture] = []
    try:
        for batch in batches:
            device = next(network.parameters()).device
            maps = attention_maps(classifier.to(device), pixels(batch, about, device))
            for row, path in enumerate(batch.paths):
                drawn.append(_draw(folder, len(drawn), batch, maps, row, about))
                yield path
            _write_page(folder, drawn)
    finally:
        _write_page(folder, drawn)


def _draw(
    folder: Path,
    number: int,
    batch: Pictures,
    maps: list[ModuleMaps],
    row: int,
    about: TrainedNetwork,
) -> DrawnPicture:
    path = batch.paths[row]
    name = f"{number:04d}-{path.stem[:_LONGEST_STEM]}"
    draw_maps(folder / f"{name}.png", batch.images_BHWC[row], maps, row)
    photograph = load_photograph(path, about.levels)
    overlays = tuple(f"{name}-{module.name}.jpg" for module in maps)
    for file, module in zip(overlays, maps, strict=True):
        draw_overlay(folder / file, photograph, module.mask_BHW[row], seen_box(photograph.size, about.resize))
    return DrawnPicture(panels=f"{name}.png", overlays=overlays, caption=str(path))


def _write_page(folder: Path, drawn: list[DrawnPicture]) -> None:
    write_atomically(folder / PAGE, index_page(drawn))
