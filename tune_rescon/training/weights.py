"""Files of weights: trained networks with their description, exported networks, and initial weights.

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
from tune_rescon.errors import ConfigError, NetworkError, StorageError, format_error
from tune_rescon.models import NetworkSpec, build_from_spec, load_rescon, resolve_network
from tune_rescon.models.rescon import KNOWN
from tune_rescon.models.spec import StageSpec
from tune_rescon.storage import local_file
from tune_rescon.training.checkpoint import is_intact, load_values, read_checkpoint, write_durably
from tune_rescon.training.device import own_generator

__all__ = [
    "Classifier",
    "InitialWeights",
    "Safetensors",
    "TrainedNetwork",
    "build_exported",
    "describe_trained",
    "load_exported",
    "load_trained",
    "read_initial",
    "read_safetensors",
    "save_trained",
]


class Classifier(nn.Module):
    """A trained network with its normalisation and a softmax: it maps pixels to probabilities."""

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

    spec: NetworkSpec
    config: TrialConfig
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each channel, for pixels scaled to 0..1; applied only if ``config.normalize``."""
    std: tuple[float, ...]
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

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of a picture before this network.

        If the stored side is unknown, pictures are decoded to the network's image size.
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
        """Return the description as plain values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "spec": self.spec.to_dict(),
            "config": self.config.to_dict(),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainedNetwork:
        """Create the description from the values of :meth:`to_dict`."""
        nested = {
            "spec": NetworkSpec.from_dict(values["spec"]),
            "config": TrialConfig.from_dict(values["config"]),
        }
        return cls(**{**values, **nested})


def save_trained(network: nn.Module, about: TrainedNetwork, path: Path) -> None:
    """Write ``network``'s weights and statistics durably.

    Args:
        network: the trained network.
        about: its description.
        path: the file to write.
    """
    write_durably({"format": FORMAT, "about": about.to_dict(), "weights": network.state_dict()}, path)


def load_trained(path: Path | str) -> tuple[nn.Module, TrainedNetwork]:
    """Return the network of a ``best.ckpt``, on the CPU and in eval mode, and its description.

    Raises:
        StorageError: the file does not exist, is damaged, does not hold a trained network, or another version
            wrote the network's numbers.
    """
    with _described_by(path):
        values = _read(Path(path))
        about = TrainedNetwork.from_dict(values["about"])
        with own_generator(torch.device("cpu")):  # the first weights are drawn, only to be replaced
            network = build_from_spec(about.spec)
        network.load_state_dict(values["weights"])
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
    """Raise a StorageError that names the file, if the block cannot use the values in it."""
    try:
        yield
    except _FOREIGN_VALUES as error:
        rule = "a trained network's file must be one that this version can read"
        got = f"{path}, which does not describe its weights: {_first_words(error)}"
        raise StorageError(format_error(rule, got=got)) from error


def _first_words(error: Exception) -> str:
    words = str(error).partition("\n")[0] or type(error).__name__
    return f"it has no {words}" if isinstance(error, KeyError) else words.rstrip(":.")


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
    def words(self) -> str:
        """The content, summarised for a message."""
        names = ", ".join(list(self.tensors)[:_SHOWN_TENSORS])
        metadata = ", ".join(self.metadata) or "none"
        return f"{self.path} ({len(self.tensors)} tensors: {names}, ...; metadata: {metadata})"


def read_safetensors(path: Path, *, where: str) -> Safetensors:
    """Read any .safetensors file.

    Args:
        path: the file.
        where: the setting or option that names the file, for the error message.

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

    Args:
        file: the content of the file.
        where: the setting or option that names the file, for the error message.

    Raises:
        StorageError: another program or another version wrote the metadata, or the tensors do not match it.
    """
    if not file.is_ours:
        hint = "Classes and normalisation are read from its metadata."
        raise StorageError(format_error(_RULE, got=file.words, where=where, hint=hint))
    try:
        about = TrainedNetwork.from_dict(_plain(json.loads(file.metadata["tune_rescon"])))
        with own_generator(torch.device("cpu")):  # the first weights are drawn, only to be replaced
            network = build_from_spec(about.spec)
        network.load_state_dict(dict(file.tensors))
    except _FOREIGN_VALUES as error:
        got = f"{file.words}, whose `tune_rescon` does not describe these tensors: {_first_words(error)}"
        raise StorageError(format_error(_RULE, got=got, where=where)) from error
    return network.eval(), about


def load_exported(path: Path, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """Read an exported file and build its network.

    Args:
        path: the file.
        where: the setting or option that names the file, for the error message.

    Raises:
        StorageError: as :func:`read_safetensors` and :func:`build_exported`.
    """
    return build_exported(read_safetensors(path, where=where), where=where)


def _plain(values: dict[str, object]) -> dict[str, object]:
    """Return JSON's ``values`` with tuples instead of lists, as TrainedNetwork's fields are."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


#: Fields of a network's spec on which its weights do not depend.
_WEIGHTLESS_FIELDS: Final = ("layout", "classes", "image_size", "drop_path")

#: TrialConfig's fields that choose a network, apart from layout and depth.
_NETWORK_FIELDS: Final = ("width", "attention", "attention_learning", "mask", "added_reference")

#: Differences that an error message names; it only counts the rest.
_SHOWN_DIFFERENCES: Final = 4


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """A file's network and its weights, under this package's names."""

    source: str
    """Path or URL."""
    spec: NetworkSpec
    choice: Mapping[str, Any]
    """TrialConfig's fields that choose this network."""
    weights: Mapping[str, Tensor]

    def check_fits(self, spec: NetworkSpec, *, where: str = "init_from") -> None:
        """Check that a trial's network ``spec`` can start with these weights.

        Raises:
            NetworkError: it is another network; the message names the differences and what to choose.
        """
        mine, theirs = _weight_fields(self.spec), _weight_fields(spec)
        other = [name for name in mine if mine[name] != theirs[name]]
        if not other:
            return
        words = [f"{name} {theirs[name]} and not {mine[name]}" for name in other[:_SHOWN_DIFFERENCES]]
        more = f" and {len(other) - _SHOWN_DIFFERENCES} more" if len(other) > _SHOWN_DIFFERENCES else ""
        rule = f"a trial's network must be that of {self.source}"
        hint = "They were trained on images of other channels."
        if other != ["in_channels"]:
            hint = f"Choose {', '.join(f'`{name}: {_yaml(value)}`' for name, value in self.choice.items())}."
        raise NetworkError(format_error(rule, got=", ".join(words) + more, where=where, hint=hint))

    def load_into(self, network: nn.Module) -> None:
        """Replace ``network``'s weights and statistics.

        The classifier is replaced only if both networks have the same number of classes.

        Raises:
            NetworkError: it is another network.
        """
        spec = network.spec
        assert isinstance(spec, NetworkSpec)
        self.check_fits(spec)
        redrawn = () if spec.classes == self.spec.classes else ("classifier.weight", "classifier.bias")
        kept = {name: tensor for name, tensor in self.weights.items() if name not in redrawn}
        network.load_state_dict({**network.state_dict(), **kept})


def read_initial(source: str) -> InitialWeights:
    """Return the weights at a path or a URL. No code in the file is run.

    Raises:
        StorageError: the file does not exist, is damaged, or holds more than tensors and plain values.
        NetworkError: the file does not hold a network of this family.
    """
    with local_file(source) as path, own_generator(torch.device("cpu")):
        if not path.is_file():
            rule = "must be a file that exists"
            raise StorageError(format_error(rule, got=source, where="init_from"))
        if path.suffix == ".safetensors":
            file = read_safetensors(path, where="init_from")
            if file.is_ours:
                network, about = build_exported(file, where="init_from")
                return _of(source, network, _choice(about.config, about.spec))
            network = _rescon(file.tensors, source)
            return _of(source, network, {"preset": _preset(network.spec)})
        hint = "Of a checkpoint that holds more, save its `state_dict` alone, where you trust it."
        values = load_values(path, where="init_from", source=source, hint=hint)
        if isinstance(values, Mapping) and ("about" in values or "trial" in values):
            network, about = load_trained(path)
            return _of(source, network, _choice(about.config, about.spec))
        network = _rescon(values, source)
        return _of(source, network, {"preset": _preset(network.spec)})


def _of(source: str, network: nn.Module, choice: Mapping[str, Any]) -> InitialWeights:
    assert isinstance(network.spec, NetworkSpec)
    return InitialWeights(source=source, spec=network.spec, choice=choice, weights=network.state_dict())


def _rescon(values: Any, source: str) -> nn.Module:
    try:
        return load_rescon(values)
    except NetworkError as error:
        rule = "must hold a network of this package, or of ResCon or the port it follows"
        raise NetworkError(f"{format_error(rule, got=source, where='init_from')} {error}") from error


def _preset(spec: Any) -> str:
    def resolved(preset: str) -> NetworkSpec:
        return resolve_network(TrialConfig(preset=preset), classes=spec.classes, in_channels=spec.in_channels)

    return next(preset for preset in KNOWN if resolved(preset) == spec)


def _choice(config: TrialConfig, spec: NetworkSpec) -> dict[str, Any]:
    """Return the fields of ``config`` that chose its network ``spec``."""
    plain = TrialConfig()
    named = {"preset": config.preset} if config.preset else {"layout": spec.layout, "depth": config.depth}
    varied = {name: getattr(config, name) for name in _NETWORK_FIELDS}
    return named | {name: value for name, value in varied.items() if value != getattr(plain, name)}


def _weight_fields(spec: NetworkSpec) -> dict[str, object]:
    """Return all fields of ``spec`` on which weights depend, by name."""
    return dict(_named(spec))


def _named(spec: NetworkSpec) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(spec):
        if field.name == "stages":
            for number in dataclasses.fields(StageSpec):
                yield f"{number.name} of stages", [getattr(stage, number.name) for stage in spec.stages]
        elif field.name not in _WEIGHTLESS_FIELDS:
            yield field.name, getattr(spec, field.name)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
