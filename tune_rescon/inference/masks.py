"""Draw the attention of a network: the trunk's features, the soft mask and their product for each module.

The paper's figure 1 shows single channels; here a map is the mean over its channels. A mask is also drawn
over the photograph at the photograph's size, on the part that was the network's input.

Shape legend: B images of a batch, C channels, H and W a map's height and width.
"""

from __future__ import annotations

import html
import math
import os
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from tune_rescon.atomic_write import atomic_write
from tune_rescon.data.decode import Levels, blaming_the_image, to_rgb
from tune_rescon.data.opening import open_picture, orientation_of, upright, without_remarks
from tune_rescon.data.selection import as_text
from tune_rescon.errors import ConfigError, format_error, unknown_name_message
from tune_rescon.inference.model import pixels
from tune_rescon.inference.pictures import Pictures
from tune_rescon.models import ExternalSpec
from tune_rescon.models.network import AttentionModule
from tune_rescon.training import TrainedNetwork
from tune_rescon.training.weights import Classifier
from tune_rescon.tuning import write_atomically

__all__ = [
    "PAGE",
    "DrawnPicture",
    "ModuleMaps",
    "attention_maps",
    "check_has_masks",
    "draw_gallery",
    "draw_maps",
    "draw_overlay",
    "index_page",
    "input_box",
    "load_photograph",
]


FloatArray = npt.NDArray[np.float32]

#: (left, top, right, bottom), pixels.
Box = tuple[float, float, float, float]

#: Largest side of a JPEG, pixels.
_MAX_JPEG_SIDE: Final = 65500

#: Share of the mask's colour in an overlay on a photograph.
_MASK_OPACITY: Final = 0.5


def check_has_masks(about: TrainedNetwork) -> None:
    """Check that a network has attention modules.

    Raises:
        ConfigError: The network is one of timm, or the user's own.
    """
    if isinstance(about.spec, ExternalSpec):
        rule = "only Residual Attention Networks have masks to draw"
        hint = "Without --masks its predictions are printed."
        raise ConfigError(format_error(rule, got=f"network {about.spec.network}", where="--masks", hint=hint))


@dataclass(frozen=True, kw_only=True)
class DrawnPicture:
    """The drawings of one picture: the names of their files in the page's folder, and the caption."""

    panels: str
    overlays: tuple[str, ...]
    caption: str


@dataclass(frozen=True, kw_only=True)
class ModuleMaps:
    """The maps of one attention module, each B x H x W."""

    name: str
    trunk_BHW: FloatArray
    mask_BHW: FloatArray
    masked_BHW: FloatArray


def attention_maps(classifier: nn.Module, pixels_BCHW: Tensor) -> list[ModuleMaps]:
    """Return the maps of every attention module of ``classifier``, in the order of the forward pass.

    Each module's features are reduced to maps at once, so that a GPU never holds those of all modules.
    """
    maps: list[ModuleMaps] = []
    with torch.inference_mode(), ExitStack() as hooks:
        for name, module in classifier.named_modules():
            if isinstance(module, AttentionModule):
                hook = _map_recorder(maps, name.removeprefix("network."), module)
                hooks.callback(module.mask.register_forward_hook(hook).remove)
        classifier(pixels_BCHW)
    return maps


def _map_recorder(
    maps: list[ModuleMaps], name: str, module: AttentionModule
) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a forward hook for the mask of ``module``, which appends the module's maps to ``maps``."""

    def record(_mask: nn.Module, inputs: Any, mask_BCHW: Tensor) -> None:
        _, trunk_BCHW = inputs
        weight_BCHW = 1 + mask_BCHW if module.residual else mask_BCHW
        maps.append(
            ModuleMaps(
                name=name,
                trunk_BHW=_mean(trunk_BCHW),
                mask_BHW=_mean(mask_BCHW),
                masked_BHW=_mean(weight_BCHW * trunk_BCHW),
            )
        )

    return record


def _mean(maps_BCHW: Tensor) -> FloatArray:
    mean: FloatArray = maps_BCHW.float().mean(1).cpu().numpy()
    return mean


def draw_maps(path: Path, image_HWC: npt.NDArray[np.uint8], maps: Sequence[ModuleMaps], row: int) -> None:
    """Write a PNG of one picture with a row of panels for each module: the input and the three maps.

    Args:
        path: The PNG file.
        image_HWC: The network's input, as bytes.
        maps: The maps of each module, for the whole batch.
        row: Index of the picture in the batch.
    """
    figure = Figure(figsize=(8, 2 * len(maps)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(maps), 4, squeeze=False)
    for line, module in zip(axes, maps, strict=True):
        mask = module.mask_BHW[row]
        line[0].imshow(image_HWC.squeeze(), cmap="gray")
        line[1].imshow(module.trunk_BHW[row], cmap="viridis")
        line[2].imshow(mask, cmap="magma")
        line[3].imshow(module.masked_BHW[row], cmap="viridis")
        titles = ("input", "trunk", f"mask, {mask.min():.2f} to {mask.max():.2f}", "masked")
        for axis, title in zip(line, titles, strict=True):
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(module.name, fontsize=8)
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110, format="png")


def load_photograph(path: Path, levels: Levels | None = None) -> Image.Image:
    """Load a picture as it was decoded for the network, RGB and upright, but at its original size.

    Args:
        path: The picture.
        levels: Range of a picture of more than 8 bits; see :func:`tune_rescon.data.decode.to_bytes`.

    Raises:
        OSError: The file cannot be read.
        BadImageError: The file is not a picture.
    """
    data = path.read_bytes()
    with without_remarks(), blaming_the_image(), open_picture(data) as image:
        return to_rgb(upright(image, orientation_of(image)), levels)


def input_box(size: tuple[int, int], resize: str = "crop") -> Box:
    """Return the part of a photograph that became the network's square input.

    Args:
        size: Width and height of the photograph, pixels.
        resize: "crop": the centre square; "squash": the whole photograph; "pad": the square around the
            photograph, which extends beyond its borders.

    Raises:
        ConfigError: ``resize`` has another value.

    >>> input_box((30, 20)), input_box((30, 20), "squash"), input_box((30, 20), "pad")
    ((5.0, 0.0, 25.0, 20.0), (0.0, 0.0, 30.0, 20.0), (0.0, -5.0, 30.0, 25.0))
    """
    width, height = size
    if resize not in ("crop", "squash", "pad"):
        raise ConfigError(unknown_name_message("resize", resize, ("crop", "pad", "squash")))
    if resize == "squash":
        return (0.0, 0.0, float(width), float(height))
    edge = min(size) if resize == "crop" else max(size)
    left, top = (width - edge) / 2, (height - edge) / 2
    return (left, top, left + edge, top + edge)


def draw_overlay(path: Path, photograph: Image.Image, mask_HW: FloatArray, box: Box) -> None:
    """Write a JPEG of the photograph's size, with the mask drawn over the part in ``box``.

    A photograph with a side that a JPEG cannot have is scaled down. The colours span the range from the
    smallest to the largest value of the mask.

    Args:
        path: The JPEG file.
        photograph: The picture at its original size.
        mask_HW: The mask.
        box: The part of the photograph that the mask covers; see :func:`input_box`.
    """
    width, height = photograph.size
    # Rounded down. `round` gives 2 for 1.5 and for 2.5, so that nothing would be left of a one-pixel square.
    visible = (
        max(math.floor(box[0]), 0),
        max(math.floor(box[1]), 0),
        min(math.floor(box[2]), width),
        min(math.floor(box[3]), height),
    )
    # The visible part, in pixels of the mask.
    across, down = mask_HW.shape[1] / (box[2] - box[0]), mask_HW.shape[0] / (box[3] - box[1])
    part = (
        max((visible[0] - box[0]) * across, 0),
        max((visible[1] - box[1]) * down, 0),
        min((visible[2] - box[0]) * across, mask_HW.shape[1]),
        min((visible[3] - box[1]) * down, mask_HW.shape[0]),
    )
    grey = Image.fromarray(_bytes(_normalised(mask_HW)))
    size = (visible[2] - visible[0], visible[3] - visible[1])
    levels_HW = np.asarray(grey.resize(size, Image.Resampling.BILINEAR, box=part))
    colours = _bytes(mpl.colormaps["magma"](np.arange(256))[:, :3])
    drawn = photograph.copy()
    # `Image.crop` refuses parts of more than 179 million pixels.
    covered = drawn.resize(size, Image.Resampling.NEAREST, box=visible)
    drawn.paste(Image.blend(covered, Image.fromarray(colours[levels_HW]), _MASK_OPACITY), visible[:2])
    drawn.thumbnail((_MAX_JPEG_SIDE, _MAX_JPEG_SIDE))
    with atomic_write(path) as scratch:
        drawn.save(scratch, format="JPEG", quality=90)


def _bytes(values: FloatArray) -> npt.NDArray[np.uint8]:
    return (255 * values).astype(np.uint8)


def _normalised(values: FloatArray) -> FloatArray:
    """Scale the values to 0..1, by the smallest and the largest finite one."""
    finite = np.nan_to_num(values, posinf=np.nan, neginf=np.nan, nan=np.nan)
    if not np.isfinite(finite).any():
        return np.zeros_like(values)
    low, high = np.nanmin(finite), np.nanmax(finite)
    scaled: FloatArray = np.nan_to_num((finite - low) / (high - low or 1))
    return scaled


def index_page(pictures: Sequence[DrawnPicture]) -> str:
    """Return an HTML page of pictures, each with its drawings."""
    figures = "\n".join(
        f"<figure>{''.join(map(_image, (picture.panels, *picture.overlays)))}"
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in pictures
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Attention masks</title>'
        "<style>body{font:16px system-ui;margin:2rem;color-scheme:light dark}"
        "figure{margin:0 0 2rem}img{max-width:100%}</style>"
        f"<h1>Attention masks</h1>\n{figures}\n</html>\n"
    )


def _image(file: str) -> str:
    return f'<img src="{urllib.parse.quote(os.fsencode(file))}" alt="" loading="lazy">'


#: File name of the page.
PAGE: Final = "index.html"

#: Maximum number of bytes of a picture's name in the names of its drawings; file systems allow 255 in all.
_MAX_STEM_BYTES: Final = 100


def draw_gallery(
    network: nn.Module, about: TrainedNetwork, batches: Iterable[Pictures], folder: Path
) -> Generator[Path, None, None]:
    """Draw every picture of the batches, and yield its path once its files are written.

    A page that lists all drawings so far is written after each batch, and when the iterator is closed or
    interrupted.

    Args:
        network: The network, on any device and in eval mode.
        about: Metadata of the network.
        batches: The pictures.
        folder: An existing folder.
    """
    classifier = Classifier(network, about).eval()
    drawn: list[DrawnPicture] = []
    try:
        for batch in batches:
            device = next(network.parameters()).device
            maps = attention_maps(classifier.to(device), pixels(batch, about, device))
            for row, path in enumerate(batch.paths):
                drawn.append(_draw(folder, batch, maps, row=row, number=len(drawn), about=about))
                yield path
            _write_page(folder, drawn)
    finally:
        _write_page(folder, drawn)


def _draw(
    folder: Path, batch: Pictures, maps: list[ModuleMaps], *, row: int, number: int, about: TrainedNetwork
) -> DrawnPicture:
    path = batch.paths[row]
    name = f"{number:04d}-{_shortened(path.stem)}"
    draw_maps(folder / f"{name}.png", batch.images_BHWC[row], maps, row)
    photograph = load_photograph(path, about.levels)
    overlays = tuple(f"{name}-{module.name}.jpg" for module in maps)
    for file, module in zip(overlays, maps, strict=True):
        draw_overlay(
            folder / file, photograph, module.mask_BHW[row], input_box(photograph.size, about.resize)
        )
    return DrawnPicture(panels=f"{name}.png", overlays=overlays, caption=as_text(str(path)))


def _shortened(stem: str) -> str:
    encoded = os.fsencode(stem)
    return stem if len(encoded) <= _MAX_STEM_BYTES else encoded[:_MAX_STEM_BYTES].decode(errors="ignore")


def _write_page(folder: Path, drawn: list[DrawnPicture]) -> None:
    write_atomically(folder / PAGE, index_page(drawn))
