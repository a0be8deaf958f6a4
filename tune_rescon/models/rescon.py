"""ResCon's checkpoints, and those of the port it follows, on this package's network.

Both repositories (AlKun25/ResCon; tengshaofeng/ResidualAttentionNetwork-pytorch) write the same names. Both
add to each interpolation the tensor whose size it takes, which no checkpoint shows. Their units carry a 1x1
``conv4`` even where the shortcut is the identity: weights that never reach the output, dropped here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, explain
from tune_rescon.models.network import ResidualAttentionNetwork, build_from_spec
from tune_rescon.models.plan import walk
from tune_rescon.models.resolve import resolve_network
from tune_rescon.models.spec import NetworkSpec

__all__ = ["load_rescon", "rescon_names"]

#: The networks these repositories define.
KNOWN: Final = (
    "rescon_attention92_32",
    "rescon_attention56_224",
    "rescon_attention92_224",
    "port_attention_448",
)

STEM: Final = "conv1.0.weight"
CLASSIFIER: Final = "fc.weight"

#: PyTorch before 0.4.1, for which the port was written, saved no such counter.
COUNTER: Final = "num_batches_tracked"

TENSORS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("weight",),
    "norm": ("weight", "bias", "running_mean", "running_var", COUNTER),
    "linear": ("weight", "bias"),
}

#: Wrong names an error spells out before it only counts them.
NAMED: Final = 4


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A network a checkpoint may hold: our names by theirs, and their dead weights."""

    preset: str
    spec: NetworkSpec
    names: Mapping[str, str]
    dead: frozenset[str]

    def missing(self, keys: Collection[str]) -> list[str]:
        return [key for key in self.names if key not in keys and not key.endswith(COUNTER)]

    def unexpected(self, keys: Iterable[str]) -> list[str]:
        return [key for key in keys if key not in self.names and key not in self.dead]

    def distance(self, keys: Collection[str]) -> int:
        return len(self.missing(keys)) + len(self.unexpected(keys))


def load_rescon(state_dict: Mapping[str, Any]) -> ResidualAttentionNetwork:
    """The network a ResCon or port checkpoint holds, with its weights, in eval mode.

    Takes a plain state dict or a Lightning checkpoint (what lies under ``state_dict``), its names plain or
    under a prefix such as ``model.`` or ``module.``. Which network it is, its classes and its input channels
    are read from names and shapes.

    Raises:
        NetworkError: no known network has these names and shapes; says what is missing or unexpected.
    """
    weights = _weights(state_dict)
    found = _recognise(weights)
    network = build_from_spec(found.spec)
    own = network.state_dict()
    for theirs, ours in found.names.items():
        if theirs in weights:
            _check_shape(theirs, weights[theirs], own[ours], found.preset)
            own[ours] = weights[theirs]
    network.load_state_dict(own)
    return network.eval()


def _weights(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors without Lightning's wrapping or a prefix; outside the prefix lies no weight of it."""
    values = state_dict.get("state_dict", state_dict)
    prefix = next((key.removesuffix(STEM) for key in values if f".{key}".endswith(f".{STEM}")), "")
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _recognise(weights: Mapping[str, Tensor]) -> _Candidate:
    classes, in_channels = _axis(weights, CLASSIFIER, 0), _axis(weights, STEM, 1)
    candidates = (_candidate(preset, classes=classes, in_channels=in_channels) for preset in KNOWN)
    nearest = min(candidates, key=lambda candidate: candidate.distance(weights.keys()))
    if nearest.distance(weights.keys()):
        wrong = [("missing", nearest.missing(weights.keys())), ("unexpected", nearest.unexpected(weights))]
        got = "; ".join(f"{word} {_some(names)}" for word, names in wrong if names)
        rule = f"must hold the weights of {', '.join(KNOWN)} (nearest: {nearest.preset})"
        raise NetworkError(explain(rule, got=got, where="state_dict"))
    return nearest


def _axis(weights: Mapping[str, Tensor], key: str, axis: int) -> int:
    """The size of one axis; 1 where there is none, for names and shapes are judged later."""
    shape = weights[key].shape if key in weights else ()
    return shape[axis] if axis < len(shape) else 1


def _candidate(preset: str, *, classes: int, in_channels: int) -> _Candidate:
    spec = resolve_network(TrialConfig(preset=preset), classes=classes, in_channels=in_channels)
    names = rescon_names(spec)
    projections = {key.replace(".conv3.", ".conv4.") for key in names if key.endswith(".conv3.weight")}
    return _Candidate(preset=preset, spec=spec, names=names, dead=frozenset(projections - names.keys()))


def rescon_names(spec: NetworkSpec) -> dict[str, str]:
    """Our state dict's keys by theirs, for a network these repositories define."""
    return {
        f"{_their_name(layer.name, spec)}.{tensor}": f"{layer.name}.{tensor}"
        for layer in walk(spec)
        for tensor in TENSORS[layer.kind]
    }


def _their_name(path: str, spec: NetworkSpec) -> str:
    """Their name of our layer at ``path``. Opening units and the final three are numbered through, to 6."""
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
    """Their name of a mask's unit. The large networks number the blocks of a mask in the order they run."""
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
        raise NetworkError(explain(rule, got="x".join(map(str, theirs.shape)), where=name))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
