"""The ``.safetensors`` file that ``python -m tune_rescon.export`` writes, read back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from tune_rescon.errors import StorageError, explain
from tune_rescon.models import build_from_spec
from tune_rescon.training.randomness import own_generator
from tune_rescon.training.trained import TrainedNetwork

__all__ = ["load_exported"]


def load_exported(path: Path, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """The network of an exported file, on the CPU and in eval mode, and what goes with it.

    Raises:
        StorageError: the file is damaged or something else's; ``where`` says who asked for it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = TrainedNetwork.from_dict(_plain(json.loads((file.metadata() or {})["tune_rescon"])))
            weights = {name: file.get_tensor(name) for name in list(file.keys())}
        with own_generator(torch.device("cpu")):  # the first weights are drawn, only to be replaced
            network = build_from_spec(about.spec)
        network.load_state_dict(weights)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        rule = "a .safetensors file must be one that `export` has written"
        raise StorageError(explain(rule, got=f"{path} ({error})", where=where)) from error
    return network.eval(), about


def _plain(values: dict[str, object]) -> dict[str, object]:
    """JSON has lists where a trained network has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
