"""The layers of any network, by the names of its parameters: the classifier, and all before it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from torch import nn

__all__ = ["Trunk", "layer_names", "trained_layers"]


#: The layer of a parameter, by its name: the opening units of a stage, an attention module, a final unit or
#: block of a list, or a whole child of the network.
_LAYER: Final = re.compile(r"stages\.\d+\.(?:opening|attention\.\d+)|(?:final|blocks|layer\d*)\.\d+|[^.]+")


#: A head of a network with several: those of distilled networks, VOLO and EfficientViM in timm.
_HEAD: Final = re.compile(r"(?:aux_)?heads?(?:_dist)?")

#: The weights with which EfficientViM adds up the outputs of its heads, and the list of these heads.
_MIXING: Final = {"weights": "heads", "weights_dist": "heads_dist"}


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name of each parameter's layer; the classifier's parameters are the last ones.

    A norm belongs to the layer before it. If a network ends with a head, all its heads are one layer, the
    classifier, also those that are created before other layers. So are the weights that mix the heads'
    outputs. A module that only wraps another one, as that of a user's own network may, is no layer.

    Args:
        names: the names of the parameters, from the first layer to the classifier.

    >>> layer_names(["stem.0.weight", "stages.0.opening.0.a", "final.0.b", "norm.weight", "classifier.bias"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'stem.0.weight': 'stem', 'stages.0.opening.0.a': 'stages.0.opening', 'final.0.b': 'final.0',
     'norm.weight': 'final.0', 'classifier.bias': 'classifier'}
    >>> layer_names(["net.conv.weight", "net.aux_head.weight", "net.norm.weight", "net.head.weight"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'net.conv.weight': 'net.conv', 'net.norm.weight': 'net.conv', 'net.aux_head.weight': 'net.aux_head',
     'net.head.weight': 'net.aux_head'}
    """
    names = list(names)
    prefix = _wrapper(names)
    parts: dict[str, str] = {}
    for name in names:
        match = _LAYER.match(name.removeprefix(prefix))
        assert match is not None, name
        parts[name] = match[0]
    known = set(parts.values())
    heads = [name for name, part in parts.items() if _HEAD.fullmatch(part) or _MIXING.get(part) in known]
    if heads[-1:] != names[-1:]:
        heads = []
    found: dict[str, str] = {}
    layer = ""
    for name in [*(name for name in names if name not in heads), *heads]:
        inside = name.removeprefix(prefix)
        same = parts[name].startswith("norm") or name in heads[1:]
        layer = layer if layer and same else name[: len(name) - len(inside)] + parts[name]
        found[name] = layer
    return found


def trained_layers(network: nn.Module) -> dict[str, str]:
    """Return the name of the layer of each parameter that is trained.

    Parameters that a user's own network keeps frozen count too where layers are told apart.
    """
    parameters = dict(network.named_parameters())
    layers = layer_names(parameters)
    return {name: layer for name, layer in layers.items() if parameters[name].requires_grad}


def _wrapper(names: Sequence[str]) -> str:
    """Return the prefix of the names in the module whose parts are the network's layers.

    >>> _wrapper(["net.model.conv.weight", "net.model.fc.weight"]), _wrapper(["conv.weight", "fc.weight"])
    ('net.model.', '')
    """
    prefix = ""
    while True:
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        parts = {name.partition(".")[0] for name in inside if "." in name} - {"parametrizations"}
        if len(parts) != 1:
            return prefix if parts else ""
        prefix += f"{parts.pop()}."


class Trunk:
    """All of a network but its classifier, which is its last layer."""

    def __init__(self, network: nn.Module) -> None:
        """Find the trunk of ``network``. Parameters that are not trained anyway do not belong to it."""
        layers = trained_layers(network)
        classifier = next(reversed(layers.values()), "")
        own = [name for name, layer in layers.items() if layer == classifier]
        weights = dict(network.named_parameters())
        self._weights = [weights[name] for name in layers if name not in own]
        self._modules = list(_without(network, own, classifier))

    def freeze(self, frozen: bool) -> None:
        """Freeze the trunk, or train it again.

        A frozen one is in eval mode: it normalises by the statistics that it has, and drops no paths.
        """
        for weight in self._weights:
            weight.requires_grad_(not frozen)
        for module in self._modules:
            module.train(not frozen)


def _without(
    module: nn.Module, parameters: Collection[str], layer: str, prefix: str = ""
) -> Iterator[nn.Module]:
    """Yield the largest parts of ``module`` that contain nothing of a layer.

    Args:
        module: the network, or a part of it.
        parameters: the names of the layer's parameters.
        layer: the name of the layer.
        prefix: the beginning of the names in ``module``.
    """
    for name, child in module.named_children():
        inside = f"{prefix}{name}."
        if not any(parameter.startswith(inside) for parameter in parameters):
            yield child
        elif layer.startswith(inside):
            yield from _without(child, parameters, layer, inside)
