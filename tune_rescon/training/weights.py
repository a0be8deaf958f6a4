"""Trained networks: their files (``best.ckpt``, ``.safetensors``) and the description in them.

Shape legend: B images of a batch, C channels, H = W the image size, K classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.data.preprocessing import Preprocessing
from tune_rescon.errors import ConfigError, NetworkError, StorageError, counted, first_line, format_error
from tune_rescon.models import NetworkDescription, build_described, description_from_dict
from tune_rescon.training.checkpoint import is_intact, read_checkpoint
from tune_rescon.training.device import isolate_rng

__all__ = [
    "Classifier",
    "Safetensors",
    "TrainedNetwork",
    "build_exported",
    "describe_trained",
    "load_exported",
    "load_trained",
    "read_safetensors",
    "trained_values",
]


class Classifier(nn.Module):
    """Maps pixels to probabilities: a trained network between its normalisation and a softmax."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, network: nn.Module, about: TrainedNetwork) -> None:
        """Wrap ``network``, which must be in eval mode, with the normalisation that ``about`` describes."""
        super().__init__()
        preprocessing = about.preprocessing
        self.network = network
        self.register_buffer("mean_C11", torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the probabilities (B, K) of images in 0..1, of the size the network was trained with."""
        logits_BK: Tensor = self.network((images_BCHW - self.mean_C11) / self.std_C11)
        return logits_BK.softmax(1)


#: Version of the file format; a reader rejects others.
FORMAT: Final = 1


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """Description of a trained network, saved with its weights."""

    spec: NetworkDescription
    config: TrialConfig
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Mean of each channel, for pixels scaled to 0..1; subtracted only if ``config.normalize``."""
    std: tuple[float, ...]
    """Standard deviation of each channel, by which pixels are divided under the same condition."""
    dataset: str
    """Content key of the images the network was trained on and of their split."""
    seed: int
    epoch: int
    """Epochs trained when these weights were validated."""
    metrics: Mapping[str, float]
    """The metrics of that epoch."""
    stored_side: int | None = None
    """Side of the squares to which pictures are decoded, pixels; None: an earlier version did not save it."""
    resize: str = "crop"
    """How pictures were made square."""
    levels: tuple[float, float] | None = None
    """The values that were mapped to 0 and 255 in pictures of more than 8 bits."""
    interpolation: str = "bilinear"
    """How squares became the network's input."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of a picture before this network."""
        return Preprocessing.of(self, image_size=self.spec.image_size, normalize=self.config.normalize)

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values, without passwords.

        The files of trained networks are exported, and registered in MLflow, which others read.
        """
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "spec": self.spec.to_dict(),
            "config": self.config.without_passwords().to_dict(),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainedNetwork:
        """Create the description from the values of :meth:`to_dict`."""
        nested = {
            "spec": description_from_dict(values["spec"]),
            "config": TrialConfig.from_dict(values["config"]),
        }
        return cls(**{**values, **nested})


def trained_values(network: nn.Module, about: TrainedNetwork) -> dict[str, Any]:
    """Return the values of a ``best.ckpt``; its weights share ``network``'s memory."""
    return {"format": FORMAT, "about": about.to_dict(), "weights": network.state_dict()}


def load_trained(path: Path | str) -> tuple[nn.Module, TrainedNetwork]:
    """Return the network of a ``best.ckpt``, on the CPU and in eval mode, and its description.

    Raises:
        StorageError: the file does not exist, is damaged, does not hold a trained network, or another version
            wrote the network's numbers.
    """
    with _described_by(path):
        values = _read(Path(path))
        return _built(TrainedNetwork.from_dict(values["about"]), values["weights"])


def _built(about: TrainedNetwork, weights: Mapping[str, Tensor]) -> tuple[nn.Module, TrainedNetwork]:
    with isolate_rng(torch.device("cpu")):  # the initial weights are random, although they are replaced
        network = build_described(about.spec)
    network.load_state_dict(weights)
    return network.eval(), about


def describe_trained(path: Path) -> TrainedNetwork:
    """Return the description of the network in a ``best.ckpt``.

    Raises:
        StorageError: as :func:`load_trained`.
    """
    with _described_by(path):
        return TrainedNetwork.from_dict(_read(path)["about"])


#: The errors of values that describe no network, or a network that the weights do not fit.
_FOREIGN_VALUES: Final = (
    ConfigError,
    NetworkError,
    AttributeError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
)


@contextmanager
def _described_by(path: Path | str) -> Iterator[None]:
    """Raise a StorageError that names the file if the block cannot use the values in it."""
    try:
        yield
    except _FOREIGN_VALUES as error:
        rule = "a trained network's file must be one that this version can read"
        got = f"{path}, which does not describe its weights: {_first_words(error)}"
        raise StorageError(format_error(rule, got=got)) from error


def _first_words(error: Exception) -> str:
    words = first_line(error)
    return f"it has no {words}" if isinstance(error, KeyError) else words.rstrip(":")


def _read(path: Path) -> dict[str, Any]:
    hint = "Give a trial's best.ckpt, or a file that `export --format safetensors` wrote."
    values = read_checkpoint(path, hint=hint)
    if not is_intact(path):
        raise StorageError(
            format_error("a checkpoint's checksums must hold", got=f"{path}, which is damaged")
        )
    if values.get("format") != FORMAT:
        if "trial" in values:
            hint = "Training continues from last.ckpt; best.ckpt is the file to use."
        else:
            hint = "Initial weights for trials are read from files of other programs too: --init-from."
        raise StorageError(
            format_error(
                f"a trained network's file must have format {FORMAT}",
                got=f"{values.get('format')!r}",
                where=str(path),
                hint=hint,
            )
        )
    return values


_RULE: Final = "a .safetensors file must be one that `export` has written"

#: Tensors that an error message names.
_SHOWN_TENSORS: Final = 3


@dataclass(frozen=True, kw_only=True)
class Safetensors:
    """The content of a .safetensors file: its metadata and its tensors, each by name."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def is_ours(self) -> bool:
        """True if, according to the metadata, this package's `export` wrote the file."""
        return "tune_rescon" in self.metadata

    @property
    def summary(self) -> str:
        """The path and the content in one line, for a message."""
        names = ", ".join(list(self.tensors)[:_SHOWN_TENSORS])
        metadata = ", ".join(self.metadata) or "none"
        return f"{self.path} ({counted(len(self.tensors), 'tensor')}: {names}, ...; metadata: {metadata})"


def read_safetensors(path: Path, *, where: str) -> Safetensors:
    """Read any .safetensors file.

    Raises:
        StorageError: the file is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return Safetensors(path=path, metadata=file.metadata() or {}, tensors=tensors)
    except (SafetensorError, OSError) as error:
        raise StorageError(format_error(_RULE, got=f"{path} ({error})", where=where)) from error


def build_exported(file: Safetensors, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """Return the network of an exported file, on the CPU and in eval mode, and its description.

    The error message names ``where``, the setting or option that gave the file.

    Raises:
        StorageError: another program or another version wrote the metadata, or the tensors do not match it.
    """
    if not file.is_ours:
        hint = "Classes and normalisation are read from its metadata."
        raise StorageError(format_error(_RULE, got=file.summary, where=where, hint=hint))
    try:
        about = TrainedNetwork.from_dict(_plain(json.loads(file.metadata["tune_rescon"])))
        return _built(about, dict(file.tensors))
    except _FOREIGN_VALUES as error:
        got = f"{file.summary}, whose `tune_rescon` does not describe these tensors: {_first_words(error)}"
        raise StorageError(format_error(_RULE, got=got, where=where)) from error


def load_exported(path: Path, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """Read an exported file; return its network, on the CPU and in eval mode, and its description.

    Raises:
        StorageError: as :func:`read_safetensors` and :func:`build_exported`.
    """
    return build_exported(read_safetensors(path, where=where), where=where)


def _plain(values: dict[str, object]) -> dict[str, object]:
    """Return the ``values`` of JSON with tuples in place of lists, like the fields of TrainedNetwork."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
