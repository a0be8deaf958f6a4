"""Load checkpoints of ResCon, and of the port it follows, into this package's network.

Both repositories (AlKun25/ResCon; tengshaofeng/ResidualAttentionNetwork-pytorch) use the same names. Both add
to each interpolated map the tensor that sets its size, which a checkpoint does not show. Their units have a
1x1 ``conv4`` even where the shortcut is the identity. These weights never reach the output, so this module
drops them. A training script may have saved the tensors in nested dicts: see :func:`find_state_dicts`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, format_error
from tune_rescon.models.network import ResidualAttentionNetwork, build_from_spec
from tune_rescon.models.presets import resolve_network
from tune_rescon.models.spec import NetworkSpec, iter_layers

__all__ = ["RESCON_PRESETS", "StateDict", "find_state_dicts", "listed", "load_rescon", "rescon_names"]


#: Maximum depth at which nested dicts are searched.
_MAX_DEPTH: Final = 5

#: Maximum number of a dict's keys, and of wrong names, that a message lists; it counts the others.
_SHOWN_KEYS: Final = 6
_SHOWN_NAMES: Final = 4


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors by name. ``place`` is the path of keys that leads to them; "" is the outermost dict."""

    place: str
    tensors: Mapping[str, Tensor]


def find_state_dicts(value: object) -> Iterator[StateDict]:
    """Yield every dict in ``value``, including ``value`` itself, that contains tensors by name.

    A module counts as its state dict. Other contents of a dict (an epoch, an optimizer's numbered states) are
    left out. ``value`` is a loaded checkpoint, a dict, or a module.

    >>> import torch
    >>> saved = {"epoch": 9, "model": {"net": {"weight": torch.ones(1)}}}
    >>> [(found.place, list(found.tensors)) for found in find_state_dicts(saved)]
    [('model.net', ['weight'])]
    """

    def below(path: tuple[str, ...], value: object) -> Iterator[StateDict]:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if not isinstance(value, Mapping) or len(path) > _MAX_DEPTH:
            return
        named = {key: one for key, one in value.items() if isinstance(key, str)}
        tensors = {key: one for key, one in named.items() if isinstance(one, Tensor)}
        if tensors:
            yield StateDict(place=".".join(path), tensors=tensors)
        for key, inner in named.items():
            yield from below((*path, key), inner)

    return below((), value)


def _describe_value(value: object) -> str:
    """Describe a value for a message: its type, and the keys of a dict.

    >>> _describe_value(None), _describe_value({"epoch": 9, "arch": "a"}), _describe_value([1])
    ('None', 'a dict of epoch, arch', 'a list')
    """
    if value is None:
        return "None"
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    if not value:
        return "an empty dict"
    return f"a dict of {listed([str(key) for key in value], _SHOWN_KEYS)}"


def listed(names: Sequence[str], most: int = _SHOWN_NAMES) -> str:
    """Return at most ``most`` of the names as text, and the number of the others.

    >>> listed(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


#: Presets of the networks that these repositories define.
RESCON_PRESETS: Final = (
    "rescon_attention92_32",
    "rescon_attention56_224",
    "rescon_attention92_224",
    "port_attention_448",
)

_STEM: Final = "conv1.0.weight"
_CLASSIFIER: Final = "fc.weight"

#: This counter may be absent, because PyTorch before 0.4.1, for which the port was written, did not save it.
_COUNTER: Final = "num_batches_tracked"

#: The tensors of each kind of layer.
_TENSORS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("weight",),
    "norm": ("weight", "bias", "running_mean", "running_var", _COUNTER),
    "linear": ("weight", "bias"),
}


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A network that a checkpoint may contain."""

    preset: str
    spec: NetworkSpec
    names: Mapping[str, str]
    """Our key of each of their keys."""
    dead: frozenset[str]
    """Their keys whose weights never reach the output."""

    def missing(self, keys: Collection[str]) -> list[str]:
        return [key for key in self.names if key not in keys and not key.endswith(_COUNTER)]

    def unexpected(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key not in self.names and key not in self.dead]

    def distance(self, keys: Collection[str]) -> int:
        return len(self.missing(keys)) + len(self.unexpected(keys))


def load_rescon(state_dict: Mapping[str, Any] | nn.Module) -> ResidualAttentionNetwork:
    """Return the network that a ResCon or port checkpoint contains, with its weights, in eval mode.

    The preset, the number of classes and the number of input channels are inferred from names and shapes.

    Args:
        state_dict: A state dict, a module, or a dict that contains the state dict of one network in nested
            dicts: under ``state_dict`` in a Lightning checkpoint, in others under ``net`` or
            ``model_state_dict``. The names may have a prefix such as ``model.`` or ``module.``.

    Raises:
        NetworkError: No known network has these names and shapes, or the dict contains several networks. The
            message lists the missing or unexpected names and the places where tensors were found.
    """
    weights, found = _only_network(state_dict)
    network = build_from_spec(found.spec)
    own = network.state_dict()
    for theirs, ours in found.names.items():
        if theirs in weights:
            _check_shape(theirs, weights[theirs], own[ours], found.preset)
            own[ours] = weights[theirs]
    network.load_state_dict(own)
    return network.eval()


def _only_network(value: object) -> tuple[Mapping[str, Tensor], _Candidate]:
    """Return the tensors of the only network in ``value``, by their names, and the network itself."""
    parts = [part for held in find_state_dicts(value) for part in _by_prefix(held)]
    # An empty dict is answered with the names that are missing.
    if not parts and not (isinstance(value, Mapping) and not value):
        rule = "must be a state dict, or hold one"
        raise NetworkError(
            format_error(rule, got=f"{_describe_value(value)}, without tensors", where="state_dict")
        )
    matched = [(part, _nearest(part.tensors)) for part in parts or [StateDict(place="", tensors={})]]
    fitting = [(part, found) for part, found in matched if not found.distance(part.tensors.keys())]
    if not fitting:
        nearest = min(matched, key=lambda pair: pair[1].distance(pair[0].tensors.keys()))
        raise NetworkError(_mismatch_message(*nearest, parts))
    if len(fitting) > 1:
        places = [part.place or "the outermost dict" for part, _ in fitting]
        got = f"{len(places)}, in {listed(places)}"
        hint = "Give the state dict of one of them."
        raise NetworkError(format_error("must hold one network", got=got, where="state_dict", hint=hint))
    ((part, found),) = fitting
    return part.tensors, found


def _by_prefix(held: StateDict) -> Iterator[StateDict]:
    """Yield the tensors of each network in one dict, without the prefix of their names.

    The prefix of a stem is that of all weights of its network. Without a stem, all tensors count as those of
    one network.
    """
    prefixes = [key.removesuffix(_STEM) for key in held.tensors if f".{key}".endswith(f".{_STEM}")] or [""]
    for prefix in prefixes:
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        yield StateDict(
            place=".".join(filter(None, (held.place, prefix.removesuffix(".")))),
            tensors={
                key.removeprefix(prefix): tensor
                for key, tensor in held.tensors.items()
                if key.startswith(prefix) and not (others and key.startswith(others))
            },
        )


def _nearest(weights: Mapping[str, Tensor]) -> _Candidate:
    classes, in_channels = _axis(weights, _CLASSIFIER, 0), _axis(weights, _STEM, 1)
    candidates = (_candidate(preset, classes=classes, in_channels=in_channels) for preset in RESCON_PRESETS)
    return min(candidates, key=lambda candidate: candidate.distance(weights.keys()))


def _mismatch_message(part: StateDict, nearest: _Candidate, parts: Sequence[StateDict]) -> str:
    """Return why ``part``, which comes nearest to a known network, is not one, and list all ``parts``."""
    keys = part.tensors.keys()
    wrong = [("missing", nearest.missing(keys)), ("unexpected", nearest.unexpected(keys))]
    got = "; ".join(f"{word} {listed(names)}" for word, names in wrong if names)
    rule = f"must hold the weights of {', '.join(RESCON_PRESETS)} (nearest: {nearest.preset})"
    found = [f"{one.place or 'the outermost dict'} ({len(one.tensors)})" for one in parts]
    hint = f"Tensors were found in {listed(found)}." if len(found) > 1 or part.place else ""
    return format_error(rule, got=got, where=part.place or "state_dict", hint=hint)


def _axis(weights: Mapping[str, Tensor], key: str, axis: int) -> int:
    """Return the size of one axis; 1 if it is absent, which a later check of names and shapes finds."""
    shape = weights[key].shape if key in weights else ()
    return shape[axis] if axis < len(shape) else 1


def _candidate(preset: str, *, classes: int, in_channels: int) -> _Candidate:
    spec = resolve_network(TrialConfig(preset=preset), classes=classes, in_channels=in_channels)
    names = rescon_names(spec)
    projections = {key.replace(".conv3.", ".conv4.") for key in names if key.endswith(".conv3.weight")}
    return _Candidate(preset=preset, spec=spec, names=names, dead=frozenset(projections - names.keys()))


def rescon_names(spec: NetworkSpec) -> dict[str, str]:
    """Return a mapping of their state-dict keys to ours, for a network that these repositories define."""
    return {
        f"{_their_name(layer.name, spec)}.{tensor}": f"{layer.name}.{tensor}"
        for layer in iter_layers(spec)
        for tensor in _TENSORS[layer.kind]
    }


def _their_name(path: str, spec: NetworkSpec) -> str:
    """Return their name of our layer at ``path``.

    They number the opening units and the three final units together, up to 6.
    """
    first = 4 - len(spec.stages)
    match path.split("."):
        case ["stem", layer]:
            return {"conv": "conv1.0", "norm": "conv1.1"}[layer]
        case ["stages", stage, "opening", "0", layer]:
            return f"residual_block{first + int(stage)}.{_in_unit(layer)}"
        case ["stages", stage, "attention", module, *rest]:
            suffix = f"_{int(module) + 1}" if int(module) else ""
            inner = _in_module(rest, spec.stages[int(stage)].mask_poolings, small=spec.layout == "rescon")
            return f"attention_module{first + int(stage)}{suffix}.{inner}"
        case ["final", unit, layer]:
            return f"residual_block{4 + int(unit)}.{_in_unit(layer)}"
        case _:
            return {"norm": "mpool2.0", "classifier": "fc"}[path]


def _in_module(parts: list[str], poolings: int, *, small: bool) -> str:
    match parts:
        case ["pre", "0", layer]:
            return f"first_residual_blocks.{_in_unit(layer)}"
        case ["trunk", unit, layer]:
            return f"trunk_branches.{unit}.{_in_unit(layer)}"
        case ["post", "0", layer]:
            return f"last_blocks.{_in_unit(layer)}"
        case ["mask", "head", layer]:
            block = "conv1_1_blocks" if small else f"softmax{2 * poolings}_blocks"
            return f"{block}.{ {'norm1': 0, 'conv1': 2, 'norm2': 3, 'conv2': 5}[layer] }"
        case ["mask", part, *middle, layer]:
            return f"{_mask_block(part, middle, poolings, small=small)}.{_in_unit(layer)}"
    raise AssertionError(f"no such layer in an attention module: {parts}")


def _mask_block(part: str, path: list[str], poolings: int, *, small: bool) -> str:
    """Return their name of a unit of a mask. The large networks number a mask's blocks in forward order."""
    index = int(path[0])
    if part == "skip":
        return f"skip{index + 1}_connection_residual_block"
    if part == "middle":
        return f"middle_2r_blocks.{index}" if small else f"softmax{poolings}_blocks.{index}"
    if small:
        return f"{part}_residual_blocks{index + 1}"
    return f"softmax{index + 1 if part == 'down' else 2 * poolings - 1 - index}_blocks"


def _in_unit(layer: str) -> str:
    return "conv4" if layer == "projection" else layer.replace("norm", "bn")


def _check_shape(name: str, theirs: Tensor, ours: Tensor, preset: str) -> None:
    if theirs.shape != ours.shape:
        rule = f"is {'x'.join(map(str, ours.shape))} in {preset}"
        raise NetworkError(format_error(rule, got="x".join(map(str, theirs.shape)), where=name))
