"""Initial weights: the files of ``init_from``, and the check that they fit a trial's network.

The classifier of a file is used by trials with the same classes. If the file does not record its classes, it
is used by trials with as many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, StorageError, format_error, hide_passwords
from tune_rescon.models import (
    ExternalSpec,
    NetworkDescription,
    NetworkSpec,
    load_rescon,
    resolve_network,
)
from tune_rescon.models.external import tensor_shapes
from tune_rescon.models.rescon import RESCON_PRESETS, StateDict, find_state_dicts, listed
from tune_rescon.models.spec import StageSpec
from tune_rescon.storage import local_file
from tune_rescon.training.checkpoint import load_values
from tune_rescon.training.device import isolate_rng
from tune_rescon.training.layers import layer_names
from tune_rescon.training.weights import TrainedNetwork, build_exported, load_trained, read_safetensors

__all__ = ["ExternalWeights", "InitialWeights", "ResidualAttentionWeights", "read_initial"]

#: Fields of a network's spec on which its weights do not depend.
_WEIGHTLESS_FIELDS: Final = ("layout", "classes", "image_size", "drop_path")

#: TrialConfig's fields that choose a network, apart from layout and depth.
_NETWORK_FIELDS: Final = ("width", "attention", "attention_learning", "mask", "added_reference")


@dataclass(frozen=True, kw_only=True)
class ResidualAttentionWeights:
    """A Residual Attention Network that a file holds, and its weights by this package's names."""

    source: str
    """Path or URL."""
    spec: NetworkSpec
    network_fields: Mapping[str, Any]
    """TrialConfig's fields that choose this network."""
    weights: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None
    """The classes in the order of the outputs; None: the file does not record them."""

    @property
    def digest(self) -> str:
        """Digest of the tensors and their names, independent of the file's path and format."""
        return _digest([self.weights])

    def classifier_message(self, spec: NetworkDescription, class_names: Sequence[str]) -> str | None:
        """Return a message for the user if there are as many ``class_names`` and they may be others."""
        return _classifier_message(self, class_names) if spec.classes == self.spec.classes else None

    def check_fits(self, spec: NetworkDescription, *, where: str = "init_from") -> None:
        """Check that a trial's network ``spec`` can start with these weights.

        Raises:
            NetworkError: it is another network; the message names the differences and what to choose.
        """
        if isinstance(spec, ExternalSpec):
            hint = f"Leave out `network`, and choose {_settings(self.network_fields)}."
            raise NetworkError(_other_network(self.source, spec, where=where, hint=hint))
        in_file, in_trial = dict(_weight_fields(self.spec)), dict(_weight_fields(spec))
        different = [name for name in in_file if in_file[name] != in_trial[name]]
        if not different:
            return
        got = listed([f"{name} {in_trial[name]} and not {in_file[name]}" for name in different])
        rule = f"a trial's network must be that of {self.source}"
        hint = "They were trained on images of other channels."
        if different != ["in_channels"]:
            hint = f"Choose {_settings(self.network_fields)}."
        raise NetworkError(format_error(rule, got=got, where=where, hint=hint))

    def load_into(self, network: nn.Module, spec: NetworkDescription, class_names: Sequence[str]) -> None:
        """Replace the weights and statistics of the ``network`` that ``spec`` describes.

        The classifier is replaced only if ``class_names``, the trial's classes, are those of the file.

        Raises:
            NetworkError: it is another network.
        """
        self.check_fits(spec)
        same = spec.classes == self.spec.classes and not _has_other_classes(self, class_names)
        redrawn = () if same else ("classifier.weight", "classifier.bias")
        kept = {name: tensor for name, tensor in self.weights.items() if name not in redrawn}
        network.load_state_dict({**network.state_dict(), **kept})


#: Prefixes that a program may have added to the names of a network's tensors.
_PREFIXES: Final = ("", "module.", "model.", "network.", "net.")

#: Tensors, or classes, that a message names.
_SHOWN_NAMES: Final = 3


@dataclass(frozen=True, kw_only=True)
class ExternalWeights:
    """Weights of a network from elsewhere."""

    source: str
    """Path or URL."""
    network: str | None
    """``TrialConfig.network``; None: the file is a bare state dict, which does not name its network."""
    state_dicts: tuple[StateDict, ...]
    """All dicts of tensors in the file."""
    class_names: tuple[str, ...] | None = None
    """The classes in the order of the outputs; None: the file does not record them."""

    @property
    def digest(self) -> str:
        """Digest of the tensors and their names, independent of the file's path and format."""
        return _digest([found.tensors for found in self.state_dicts])

    def check_fits(self, spec: NetworkDescription, *, where: str = "init_from") -> None:
        """Check that a trial's network ``spec`` can start with these weights.

        Raises:
            NetworkError: it is another network, or its tensors have other names or shapes.
        """
        if isinstance(spec, NetworkSpec) or self.network not in (None, spec.network):
            hint = f"Choose `network: {self.network}`." if self.network else ""
            raise NetworkError(_other_network(self.source, spec, where=where, hint=hint))
        self._kept(tensor_shapes(spec), classes=spec.classes, where=where)

    def classifier_message(self, spec: NetworkDescription, class_names: Sequence[str]) -> str | None:
        """Return a message for the user if there are as many ``class_names`` and they may be others."""
        assert isinstance(spec, ExternalSpec)
        shapes = tensor_shapes(spec)
        kept = self._kept(shapes, classes=spec.classes, where="init_from")
        as_many = all(name in kept or _is_counter(name) for name in shapes)
        return _classifier_message(self, class_names) if as_many else None

    def load_into(self, network: nn.Module, spec: NetworkDescription, class_names: Sequence[str]) -> None:
        """Replace the weights and statistics of the ``network`` that ``spec`` describes.

        The classifier stays as it is unless ``class_names``, the trial's classes, are those of the file.

        Raises:
            NetworkError: it is another network.
        """
        own = network.state_dict()
        shapes = {name: tensor.shape for name, tensor in own.items()}
        kept = self._kept(shapes, classes=spec.classes, where="init_from")
        if _has_other_classes(self, class_names):
            kept = {name: kept[name] for name in kept.keys() - _output_parameters(network, spec.classes)}
        network.load_state_dict({**own, **kept})

    def _kept(self, shapes: Mapping[str, torch.Size], *, classes: int, where: str) -> dict[str, Tensor]:
        """Return the tensors for a network whose tensors have these shapes.

        The tensors of a classifier for another number of classes are left out.
        """
        matched = {place: _matched(tensors, shapes, classes) for place, tensors in self._candidates()}
        fitting = {place: kept for place, (kept, differences) in matched.items() if not differences}
        if len(fitting) > 1:
            got = f"{len(fitting)}, in {listed(list(fitting), _SHOWN_NAMES)}"
            hint = "Save the state dict of one of them."
            raise NetworkError(format_error("must hold one network", got=got, where=where, hint=hint))
        if not fitting:
            _, differences = max(matched.values(), key=lambda pair: len(pair[0].keys() & shapes.keys()))
            rule = f"a trial's network must have the tensors of {self.source}"
            raise NetworkError(format_error(rule, got="; ".join(differences), where=where))
        return next(iter(fitting.values()))

    def _candidates(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the place of each possible network in the file, and its tensors by name without a prefix."""
        for found in self.state_dicts:
            for prefix in _PREFIXES:
                place = ".".join(filter(None, (found.place, prefix.removesuffix("."))))
                yield (
                    place or "the outermost dict",
                    {
                        name.removeprefix(prefix): tensor
                        for name, tensor in found.tensors.items()
                        if name.startswith(prefix)
                    },
                )


def _matched(
    found: dict[str, Tensor], shapes: Mapping[str, torch.Size], classes: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that ``found`` has for a network of these ``shapes``, and the differences, in words.

    The tensors of a classifier for another number of classes are left out; they are no difference.
    """
    # Files of an old torch have no counters of batches.
    missing = [name for name in shapes.keys() - found.keys() if not _is_counter(name)]
    other = {name for name in found.keys() & shapes.keys() if found[name].shape != shapes[name]}
    # All tensors of a classifier for other classes have the same two sizes in the first axis, and equal other
    # axes. A table of positions for images of another size may look alike, but is not as long as the classes.
    sizes = {(*found[name].shape[:1], *shapes[name][:1]) for name in other}
    alike = all(found[name].shape[1:] == shapes[name][1:] for name in other)
    if alike and [size for _, *size in sizes] == [[classes]]:
        found = {name: tensor for name, tensor in found.items() if name not in other}
        other = set()
    wrong = [("missing", missing), ("unexpected", found.keys() - shapes.keys()), ("of another shape", other)]
    return found, [f"{listed(sorted(names), _SHOWN_NAMES)} {kind}" for kind, names in wrong if names]


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _output_parameters(network: nn.Module, classes: int) -> set[str]:
    """Return the names of the classifier's parameters that have an entry for each class."""
    parameters = dict(network.named_parameters())
    layers = layer_names(parameters)
    classifier = next(reversed(layers.values()), "")
    return {
        name
        for name, layer in layers.items()
        if layer == classifier and parameters[name].shape[:1] == (classes,)
    }


#: The content of a file of initial weights.
InitialWeights: TypeAlias = ResidualAttentionWeights | ExternalWeights


def _has_other_classes(weights: InitialWeights, class_names: Sequence[str]) -> bool:
    return weights.class_names not in (None, tuple(class_names))


def _classifier_message(weights: InitialWeights, class_names: Sequence[str]) -> str | None:
    source = hide_passwords(weights.source)
    if weights.class_names is None:
        return f"init_from {source} does not record its classes; its classifier is used, as it has as many"
    if not _has_other_classes(weights, class_names):
        return None
    theirs = listed(weights.class_names, _SHOWN_NAMES)
    what = "the classes in another order" if set(weights.class_names) == set(class_names) else "other classes"
    return f"init_from {source} has {what} ({theirs}), so the classifier is drawn at random"


def read_initial(source: str, *, external: bool = False) -> InitialWeights:
    """Return the weights at a path or a URL. No code in the file is run.

    Args:
        source: the path or URL.
        external: True for a network from elsewhere, whose file may be a bare state dict.

    Raises:
        StorageError: the file does not exist, is damaged, or holds more than tensors and plain values.
        NetworkError: the file does not hold a network of this family.
    """
    with local_file(source) as path, isolate_rng(torch.device("cpu")):
        if not path.is_file():
            rule = "must be a file that exists"
            raise StorageError(format_error(rule, got=source, where="init_from"))
        if path.suffix == ".safetensors":
            file = read_safetensors(path, where="init_from")
            if file.is_ours:
                return _of_trained(source, *build_exported(file, where="init_from"))
            values: Any = file.tensors
        else:
            hint = "If the checkpoint holds more and you trust it, save only its `state_dict`."
            values = load_values(path, where="init_from", source=source, hint=hint)
            if isinstance(values, Mapping) and ("about" in values or "trial" in values):
                return _of_trained(source, *load_trained(path))
        try:
            network = _rescon(values, source)
        except NetworkError:
            found = tuple(find_state_dicts(values))
            if not external or not found:
                raise
            return ExternalWeights(source=source, network=None, state_dicts=found)
        assert isinstance(network.spec, NetworkSpec)
        return ResidualAttentionWeights(
            source=source,
            spec=network.spec,
            network_fields={"preset": _preset(network.spec)},
            weights=network.state_dict(),
        )


def _of_trained(source: str, network: nn.Module, about: TrainedNetwork) -> InitialWeights:
    weights = network.state_dict()
    if isinstance(about.spec, ExternalSpec):
        found = StateDict(place="", tensors=weights)
        return ExternalWeights(
            source=source,
            network=about.spec.network,
            state_dicts=(found,),
            class_names=about.class_names,
        )
    network_fields = _network_fields_of(about.config, about.spec)
    return ResidualAttentionWeights(
        source=source,
        spec=about.spec,
        network_fields=network_fields,
        weights=weights,
        class_names=about.class_names,
    )


def _digest(state_dicts: Iterable[Mapping[str, Tensor]]) -> str:
    state = blake2b(digest_size=16)
    for tensors in state_dicts:
        for name, tensor in sorted(tensors.items()):
            state.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            # numpy has no bfloat16, so the tensor is viewed as bytes.
            state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _other_network(source: str, spec: NetworkDescription, *, where: str, hint: str) -> str:
    rule = f"a trial's network must be that of {source}"
    got = spec.network if isinstance(spec, ExternalSpec) else "a Residual Attention Network"
    return format_error(rule, got=got, where=where, hint=hint)


def _rescon(values: Any, source: str) -> nn.Module:
    try:
        return load_rescon(values)
    except NetworkError as error:
        rule = "must hold a network of this package, or of ResCon or the port it follows"
        raise NetworkError(f"{format_error(rule, got=source, where='init_from')} {error}") from error


def _preset(spec: Any) -> str:
    def resolved(preset: str) -> NetworkSpec:
        return resolve_network(TrialConfig(preset=preset), classes=spec.classes, in_channels=spec.in_channels)

    return next(preset for preset in RESCON_PRESETS if resolved(preset) == spec)


def _network_fields_of(config: TrialConfig, spec: NetworkSpec) -> dict[str, Any]:
    """Return the fields of ``config`` that chose its network ``spec``."""
    plain = TrialConfig()
    named = {"preset": config.preset} if config.preset else {"layout": spec.layout, "depth": config.depth}
    varied = {name: getattr(config, name) for name in _NETWORK_FIELDS}
    return named | {name: value for name, value in varied.items() if value != getattr(plain, name)}


def _weight_fields(spec: NetworkSpec) -> Iterator[tuple[str, object]]:
    """Yield the fields of ``spec`` on which weights depend, by name."""
    for field in dataclasses.fields(spec):
        if field.name == "stages":
            for number in dataclasses.fields(StageSpec):
                yield f"{number.name} of stages", [getattr(stage, number.name) for stage in spec.stages]
        elif field.name not in _WEIGHTLESS_FIELDS:
            yield field.name, getattr(spec, field.name)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _settings(network_fields: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}: {_yaml(value)}`" for name, value in network_fields.items())
