"""The parameters of any network, by name: their layers, and which of them do not decay."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

__all__ = ["Trunk", "layer_names", "trained_layers", "without_decay"]


#: The name of a module in a list: ``3``, ``b3`` (RegNet), ``denselayer3``, ``encoder_layer_3``, ``block1-3``.
_NUMBERED: Final = re.compile(r"(?:b|\D*(?:block|layer)\D*)?[\d-]+")

#: Names of lists of blocks. A numbered module that has one is a stage.
_BLOCKS_OF_A_STAGE: Final = ("attention", "blocks", "layers", "transformer_encoder")

#: Lists whose modules are layers even at the end of a network, where any other list is the classifier.
_BLOCKS_AT_THE_END: Final = re.compile(r"final|blocks|layer\d*")

#: A module with fewer parts that have parameters, such as a convolution and its norm, is no block.
_PARTS_OF_A_BLOCK: Final = 3

#: A head of a network with several heads: distilled networks, VOLO and EfficientViM in timm.
_HEAD: Final = re.compile(r"(?:aux_)?heads?(?:_dist)?")

#: The weights with which EfficientViM adds up the outputs of its heads, and the list of these heads.
_MIXING: Final = {"weights": "heads", "weights_dist": "heads_dist"}

#: Parts that are one layer even if they are lists.
_UNDIVIDED: Final = re.compile(rf"\w*stem\w*|conv\d*|patch_embed|norm\w*|{_HEAD.pattern}")

#: The parts of a module by name; a parameter has none.
_Parts = dict[str, "_Parts"]


def layer_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name of each parameter's layer; the classifier's parameters are the last ones.

    A layer is a block, which is numbered in its list; what a stage has beside its blocks, such as a
    downsampling; or any other part of the network as a whole.

    A norm belongs to the layer before it. If a network ends with a head, all its heads are one layer, the
    classifier, also those that are created before other layers. So are the weights that mix the heads'
    outputs. A module that only wraps another one, as in a user's own network, is no layer.

    Args:
        names: the names of the parameters, from the first layer to the classifier.

    >>> layer_names(["stem.0.weight", "stages.0.opening.0.a", "final.0.b", "norm.weight", "classifier.bias"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'stem.0.weight': 'stem', 'stages.0.opening.0.a': 'stages.0', 'final.0.b': 'final.0',
     'norm.weight': 'final.0', 'classifier.bias': 'classifier'}
    >>> layer_names(["net.conv.weight", "net.aux_head.weight", "net.norm.weight", "net.head.weight"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'net.conv.weight': 'net.conv', 'net.norm.weight': 'net.conv', 'net.aux_head.weight': 'net.aux_head',
     'net.head.weight': 'net.aux_head'}
    """
    names = list(names)
    prefix = _wrapper(names)
    paths = {name: name.removeprefix(prefix).split(".") for name in names}
    network: _Parts = {}
    for path in paths.values():
        functools.reduce(lambda module, part: module.setdefault(part, {}), path, network)
    last = paths[names[-1]] if names else []
    parts = {name: ".".join(_layer(path, network, last)) for name, path in paths.items()}
    known = set(parts.values())
    heads = [name for name, part in parts.items() if _HEAD.fullmatch(part) or _MIXING.get(part) in known]
    if heads[-1:] != names[-1:]:
        heads = []  # the network does not end with a head
    found: dict[str, str] = {}
    layer = ""
    for name in [*(name for name in names if name not in heads), *heads]:
        joins_previous = parts[name].rpartition(".")[2].startswith("norm") or name in heads[1:]
        if not layer or not joins_previous:
            layer = (prefix if name.startswith(prefix) else "") + parts[name]
        found[name] = layer
    return found


def _layer(path: Sequence[str], network: _Parts, last: Sequence[str]) -> Sequence[str]:
    """Return the path of the layer of the parameter at ``path``.

    Args:
        path: the path of the parameter, by the names of the modules.
        network: the parts of the network.
        last: the path of the last parameter.
    """
    module, in_list = network[path[0]], False
    for depth, part in enumerate(path[1:], start=1):
        if _UNDIVIDED.fullmatch(path[depth - 1]):
            return path[:depth]
        is_classifier = path[:depth] == last[:depth] and not _BLOCKS_AT_THE_END.fullmatch(path[depth - 1])
        if _is_list(module) and (_has_blocks(module) or not (in_list or is_classifier)):
            in_list = True  # the next module on the path is a block, or a stage
        elif in_list:
            # The module is numbered. It is a stage, which is divided again, if a list of blocks follows.
            if part not in _BLOCKS_OF_A_STAGE or not _has_blocks(module[part]):
                return path[:depth]
        elif not _contains_blocks(module):
            return path[:depth]
        module = module[part]
    return path


def _is_list(module: _Parts) -> bool:
    """Return whether a module is a list of modules, not of parameters."""
    return all(map(_NUMBERED.fullmatch, module)) and any(module.values())


def _has_blocks(module: _Parts) -> bool:
    return _is_list(module) and any(_size(part) >= _PARTS_OF_A_BLOCK for part in module.values())


def _contains_blocks(module: _Parts) -> bool:
    """Return whether a module contains lists of blocks, as a network inside another network does."""
    divided = [part for name, part in module.items() if not _UNDIVIDED.fullmatch(name)]
    return any(_has_blocks(part) or _contains_blocks(part) for part in divided if part)


def _size(module: _Parts) -> int:
    """Return how many modules, of ``module`` and those in it, have parameters of their own."""
    return any(not part for part in module.values()) + sum(map(_size, module.values()))


def trained_layers(network: nn.Module) -> dict[str, str]:
    """Return the name of the layer of each parameter that is trained.

    Parameters that a user's own network keeps frozen count too where layers are told apart.
    """
    parameters = dict(network.named_parameters())
    layers = layer_names(parameters)
    return {name: layer for name, layer in layers.items() if parameters[name].requires_grad}


def without_decay(network: nn.Module) -> set[str]:
    """Return the names of the parameters that do not decay: vectors, and those that a network exempts.

    Networks of timm, and their parts, do so by a method ``no_weight_decay``. It returns names or patterns of
    names.
    """
    found: set[str] = set()
    for place, module in network.named_modules():
        exempted = getattr(module, "no_weight_decay", None)
        patterns = list(exempted()) if callable(exempted) else []
        found |= {
            f"{place}.{name}" if place else name
            for name, weight in module.named_parameters()
            if ("." not in name and _is_vector(weight, module))
            or any(fnmatchcase(name, pattern) for pattern in patterns)
        }
    return found


def _is_vector(weight: Tensor, module: nn.Module) -> bool:
    """Return whether a parameter of ``module`` is 1-d, apart from axes of one entry (scales of C x 1 x 1).

    The kernel of a convolution to one channel is no vector, and neither is any matrix. A convolution may also
    have scales, as those of NFNets.
    """
    if isinstance(module, _ConvNd) and weight is module.weight:
        return False
    return weight.ndim != 2 and weight.squeeze().ndim < 2


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
        modules = [part for module in _without(network, own, classifier) for part in module.modules()]
        self._modes = [(module, module.training) for module in modules]

    def freeze(self, frozen: bool) -> None:
        """Freeze the trunk, or train it again.

        A frozen one is in eval mode: it normalises by the statistics that it has, and drops no paths. Modules
        that were in eval mode before stay in it.
        """
        for weight in self._weights:
            weight.requires_grad_(not frozen)
        for module, training in self._modes:
            module.training = training and not frozen


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
