"""What a network attends to: for each attention module the trunk's feature, the soft mask, and their product.

The paper's figure 1 shows single channels; here a map is the mean over its channels.

Shape legend: B images of a batch, C channels, H and W a map's height and width.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from tune_rescon.models.attention import AttentionModule

__all__ = ["ModuleMaps", "attention_maps", "draw_maps", "index_page"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ModuleMaps:
    """One module's, each B x H x W."""

    name: str
    trunk_BHW: FloatArray
    mask_BHW: FloatArray
    masked_BHW: FloatArray


def attention_maps(classifier: nn.Module, pixels_BCHW: Tensor) -> list[ModuleMaps]:
    """The maps of every attention module of ``classifier``, in the order of the forward pass."""
    modules = {
        name.removeprefix("network."): module
        for name, module in classifier.named_modules()
        if isinstance(module, AttentionModule)
    }
    with torch.inference_mode(), ExitStack() as held:
        seen = {name: held.enter_context(_watched(module)) for name, module in modules.items()}
        classifier(pixels_BCHW)
    return [_maps(name, modules[name], *found) for name, found in seen.items()]


@contextmanager
def _watched(module: AttentionModule) -> Iterator[list[Tensor]]:
    """The trunk's output and the mask of the next forward pass."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found.append(output)

    handles = [part.register_forward_hook(keep) for part in (module.trunk, module.mask)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _maps(name: str, module: AttentionModule, trunk_BCHW: Tensor, mask_BCHW: Tensor) -> ModuleMaps:
    weight_BCHW = 1 + mask_BCHW if module.residual else mask_BCHW
    return ModuleMaps(
        name=name,
        trunk_BHW=_mean(trunk_BCHW),
        mask_BHW=_mean(mask_BCHW),
        masked_BHW=_mean(weight_BCHW * trunk_BCHW),
    )


def _mean(maps_BCHW: Tensor) -> FloatArray:
    mean: FloatArray = maps_BCHW.float().mean(1).cpu().numpy()
    return mean


def draw_maps(path: Path, image_HWC: npt.NDArray[np.uint8], maps: Sequence[ModuleMaps], row: int) -> None:
    """Write a PNG: a line for each module, with the input and its three maps; ``row`` of the batch."""
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
    figure.savefig(path, dpi=110)


def index_page(pictures: Sequence[tuple[str, str]]) -> str:
    """A page of pictures: (file beside the page, caption) each."""
    figures = "\n".join(
        f'<figure><img src="{html.escape(file, quote=True)}" alt=""><figcaption>{html.escape(words)}'
        "</figcaption></figure>"
        for file, words in pictures
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Attention masks</title>'
        "<style>body{font:16px system-ui;margin:2rem;color-scheme:light dark}"
        "figure{margin:0 0 2rem}img{max-width:100%}</style>"
        f"<h1>Attention masks</h1>\n{figures}\n</html>\n"
    )
