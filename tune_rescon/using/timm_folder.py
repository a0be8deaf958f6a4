"""A trained network as a folder that timm loads: its numbers, weights and data config.

::

    FOLDER/config.json         timm's: architecture, model_args (the network's numbers), pretrained_cfg
    FOLDER/model.safetensors   the weights

timm gives a checkpoint's own metadata to nobody: a ``checkpoint_path`` is used with the data config of its
architecture. From a folder timm takes both.

Shape legend: B images of a batch, C channels, H = W the image size, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_rescon.training import TrainedNetwork

__all__ = ["write_timm_folder"]


def write_timm_folder(network: nn.Module, about: TrainedNetwork, path: Path) -> Callable[[Tensor], Tensor]:
    """Write the folder, and load it by timm.

    Args:
        network: whose weights are written.
        about: what goes with it.
        path: the folder; there is none of the name yet.

    Returns:
        Probabilities, B x K, of pixels in 0..1, B x C x H x W, by what timm has loaded and read.

    Raises:
        ImportError: timm is not installed.
        OSError: the folder cannot be written.
    """
    import timm
    from safetensors.torch import save_file

    from tune_rescon.timm_models import EXPORTED, data_config

    config = {
        "architecture": EXPORTED,
        "num_classes": about.spec.classes,
        "model_args": {
            "spec": about.spec.to_dict(),
            "preprocessing": about.preprocessing.to_dict(),
            "num_classes": about.spec.classes,
            "in_chans": about.spec.in_channels,
        },
        "pretrained_cfg": data_config(about.preprocessing, about.spec, about.class_names),
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    loaded: Any = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    mean_C11, std_C11 = (torch.tensor(loaded.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))

    def run(pixels_BCHW: Tensor) -> Tensor:
        probabilities_BK: Tensor = loaded((pixels_BCHW - mean_C11) / std_C11).softmax(1)
        return probabilities_BK

    return run
