"""Weights that a trial begins with instead of drawing its own: of another trial's network, or of ResCon's.

The network must be the trial's in everything but the size of its images, its dropped paths and its classes:
weights of another one load into nothing, and those of one that only computes otherwise (``added_reference``,
``attention``) would load and be no good. Where the classes are not as many, the classifier stays as drawn.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError, StorageError, explain
from tune_rescon.models import NetworkSpec, load_rescon, resolve_network
from tune_rescon.models.rescon import KNOWN
from tune_rescon.models.spec import StageSpec
from tune_rescon.storage import local_file
from tune_rescon.training.exported import build_exported, read_safetensors
from tune_rescon.training.randomness import own_generator
from tune_rescon.training.trained import load_trained

__all__ = ["InitialWeights", "read_initial"]

#: Numbers of a network that weights do not depend on.
_FREE: Final = ("layout", "classes", "image_size", "drop_path")

#: TrialConfig's fields beside layout and depth that choose a network.
_VARIATIONS: Final = ("width", "attention", "attention_learning", "mask", "added_reference")

#: Differences that an error spells out before it only counts them.
_NAMED: Final = 4


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """A file's network and its weights, by our names."""

    source: str
    """Path or URL."""
    spec: NetworkSpec
    choice: Mapping[str, Any]
    """TrialConfig's fields that ask for this network."""
    weights: Mapping[str, Tensor]

    def check_fits(self, spec: NetworkSpec, *, where: str = "init_from") -> None:
        """Check that a trial's network ``spec`` can begin with these weights.

        Raises:
            NetworkError: it is another network; says in what, and what to choose.
        """
        mine, theirs = _numbers(self.spec), _numbers(spec)
        other = [name for name in mine if mine[name] != theirs[name]]
        if not other:
            return
        words = [f"{name} {theirs[name]} and not {mine[name]}" for name in other[:_NAMED]]
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        rule = f"a trial's network must be that of {self.source}"
        hint = "They were trained on images of other channels."
        if other != ["in_channels"]:
            hint = f"Choose {', '.join(f'`{name}: {_yaml(value)}`' for name, value in self.choice.items())}."
        raise NetworkError(explain(rule, got=", ".join(words) + more, where=where, hint=hint))

    def put_into(self, network: nn.Module) -> None:
        """Replace ``network``'s weights and statistics; its classifier only where the classes are as many.

        Raises:
            NetworkError: it is another network.
        """
        spec = network.spec
        assert isinstance(spec, NetworkSpec)
        self.check_fits(spec)
        anew = () if spec.classes == self.spec.classes else ("classifier.weight", "classifier.bias")
        kept = {name: tensor for name, tensor in self.weights.items() if name not in anew}
        network.load_state_dict({**network.state_dict(), **kept})


def read_initial(source: str) -> InitialWeights:
    """The weights at a path or a URL. No code that a file holds is run.

    Raises:
        StorageError: there is no such file, it is damaged, or it holds more than tensors and plain values.
        NetworkError: it holds no network of this family.
    """
    with local_file(source) as path, own_generator(torch.device("cpu")):
        if not path.is_file():
            rule = "must be a file that exists"
            raise StorageError(explain(rule, got=source, where="init_from"))
        if path.suffix == ".safetensors":
            file = read_safetensors(path, where="init_from")
            if file.is_ours:
                network, about = build_exported(file, where="init_from")
                return _of(source, network, _choice(about.config, about.spec))
            network = _rescon(file.tensors, source)
            return _of(source, network, {"preset": _preset(network.spec)})
        values = _values(path, source)
        if isinstance(values, Mapping) and ("about" in values or "trial" in values):
            network, about = load_trained(path)
            return _of(source, network, _choice(about.config, about.spec))
        network = _rescon(values, source)
        return _of(source, network, {"preset": _preset(network.spec)})


def _of(source: str, network: nn.Module, choice: Mapping[str, Any]) -> InitialWeights:
    assert isinstance(network.spec, NetworkSpec)
    return InitialWeights(source=source, spec=network.spec, choice=choice, weights=network.state_dict())


def _values(path: Path, source: str) -> Any:
    # A file of torch before 1.6, as the port's are, is no archive and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Whatever another kind of file makes of the unpickler; torch's words advise to run its code.
        rule = "must be a whole file that torch wrote, of tensors and plain values; code in it is never run"
        hint = "Of a checkpoint that holds more, save its `state_dict` alone, where you trust it."
        raise StorageError(explain(rule, got=source, where="init_from", hint=hint)) from error


def _rescon(values: Any, source: str) -> nn.Module:
    try:
        return load_rescon(values)
    except NetworkError as error:
        rule = "must hold a network of this package, or of ResCon or the port it follows"
        raise NetworkError(f"{explain(rule, got=source, where='init_from')} {error}") from error


def _preset(spec: Any) -> str:
    def resolved(preset: str) -> NetworkSpec:
        return resolve_network(TrialConfig(preset=preset), classes=spec.classes, in_channels=spec.in_channels)

    return next(preset for preset in KNOWN if resolved(preset) == spec)


def _choice(config: TrialConfig, spec: NetworkSpec) -> dict[str, Any]:
    """What of ``config`` has chosen its network ``spec``."""
    plain = TrialConfig()
    named = {"preset": config.preset} if config.preset else {"layout": spec.layout, "depth": config.depth}
    varied = {name: getattr(config, name) for name in _VARIATIONS}
    return named | {name: value for name, value in varied.items() if value != getattr(plain, name)}


def _numbers(spec: NetworkSpec) -> dict[str, object]:
    """All that weights depend on, by name."""
    return dict(_named(spec))


def _named(spec: NetworkSpec) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(spec):
        if field.name == "stages":
            for number in dataclasses.fields(StageSpec):
                yield f"{number.name} of stages", [getattr(stage, number.name) for stage in spec.stages]
        elif field.name not in _FREE:
            yield field.name, getattr(spec, field.name)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
