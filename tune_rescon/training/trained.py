"""A trained network as a file: its weights, the numbers that build it, what goes in and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tune_rescon.config import TrialConfig
from tune_rescon.data.preprocessing import Preprocessing
from tune_rescon.errors import StorageError, explain
from tune_rescon.models import NetworkSpec, build_from_spec
from tune_rescon.training.checkpoint import is_intact, read_checkpoint, write_durably
from tune_rescon.training.randomness import own_generator

__all__ = ["TrainedNetwork", "describe_trained", "load_trained", "save_trained"]

#: Version of the file; a reader refuses those it does not know.
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """What goes with a trained network's weights."""

    spec: NetworkSpec
    config: TrialConfig
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each channel, pixels scaled to 0..1; applied only if ``config.normalize``."""
    std: tuple[float, ...]
    dataset: str
    """Content key of the images it was trained on and their split."""
    seed: int
    epoch: int
    """Epochs trained when these weights were validated."""
    metrics: Mapping[str, float]
    """That epoch's."""
    stored_side: int | None = None
    """Side of the squares that pictures are decoded to, pixels; None: an earlier version did not note it."""
    resize: str = "crop"
    """How pictures became squares."""
    levels: tuple[float, float] | None = None
    """The values that became 0 and 255 in pictures of more than 8 bits."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to a picture before this network sees it.

        Where the stored side is not known, pictures are decoded to the network's own image size.
        """
        return Preprocessing.of(
            stored_side=self.stored_side or self.spec.image_size,
            image_size=self.spec.image_size,
            mean=self.mean,
            std=self.std,
            normalize=self.config.normalize,
            resize=self.resize,
            levels=self.levels,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "spec": self.spec.to_dict(),
            "config": self.config.to_dict(),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainedNetwork:
        """Back from :meth:`to_dict`."""
        nested = {
            "spec": NetworkSpec.from_dict(values["spec"]),
            "config": TrialConfig.from_dict(values["config"]),
        }
        return cls(**{**values, **nested})


def save_trained(network: nn.Module, about: TrainedNetwork, path: Path) -> None:
    """Write ``network``'s weights and statistics, and ``about``, durably."""
    write_durably({"format": FORMAT, "about": about.to_dict(), "weights": network.state_dict()}, path)


def load_trained(path: Path | str) -> tuple[nn.Module, TrainedNetwork]:
    """The network of a ``best.ckpt``, on the CPU and in eval mode, and what goes with it.

    Raises:
        StorageError: there is no such file, it is damaged, or it is not a trained network's.
        NetworkError: another version wrote its numbers.
    """
    values = _read(Path(path))
    about = TrainedNetwork.from_dict(values["about"])
    with own_generator(torch.device("cpu")):  # the first weights are drawn, only to be replaced
        network = build_from_spec(about.spec)
    network.load_state_dict(values["weights"])
    return network.eval(), about


def describe_trained(path: Path) -> TrainedNetwork:
    """What goes with the network of a ``best.ckpt``. Raises as :func:`load_trained`."""
    return TrainedNetwork.from_dict(_read(path)["about"])


def _read(path: Path) -> dict[str, Any]:
    values = read_checkpoint(path)
    if not is_intact(path):
        raise StorageError(explain("a checkpoint's checksums must hold", got=f"{path}, which is damaged"))
    if values.get("format") != FORMAT:
        raise StorageError(
            explain(
                f"a trained network's file must have format {FORMAT}",
                got=f"{values.get('format')!r}",
                where=str(path),
                hint="Training goes on from last.ckpt; best.ckpt is the file to use.",
            )
        )
    return values
