"""The ``.safetensors`` file that ``python -m tune_rescon.export`` writes, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tune_rescon.errors import StorageError, UserError, explain
from tune_rescon.models import build_from_spec
from tune_rescon.training.randomness import own_generator
from tune_rescon.training.trained import TrainedNetwork

__all__ = ["Safetensors", "build_exported", "load_exported", "read_safetensors"]

_RULE: Final = "a .safetensors file must be one that `export` has written"

#: Names of tensors that a message spells out.
_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Safetensors:
    """A file's metadata, texts by name, and its tensors."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def is_ours(self) -> bool:
        """Whether `export` has written it, by its metadata."""
        return "tune_rescon" in self.metadata

    @property
    def words(self) -> str:
        """What it holds, for a message."""
        names = ", ".join(list(self.tensors)[:_NAMED])
        metadata = ", ".join(self.metadata) or "none"
        return f"{self.path} ({len(self.tensors)} tensors: {names}, ...; metadata: {metadata})"


def read_safetensors(path: Path, *, where: str) -> Safetensors:
    """Any such file.

    Raises:
        StorageError: it is damaged, or of another kind; ``where`` says who asked for it.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
            return Safetensors(path=path, metadata=file.metadata() or {}, tensors=tensors)
    except (SafetensorError, OSError) as error:
        raise StorageError(explain(_RULE, got=f"{path} ({error})", where=where)) from error


def build_exported(file: Safetensors, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """The network of an exported file, on the CPU and in eval mode, and what goes with it.

    Raises:
        StorageError: its metadata is another program's or another version's, or its tensors do not fit.
    """
    if not file.is_ours:
        hint = "Classes and normalisation are read from its metadata."
        raise StorageError(explain(_RULE, got=file.words, where=where, hint=hint))
    try:
        about = TrainedNetwork.from_dict(_plain(json.loads(file.metadata["tune_rescon"])))
        with own_generator(torch.device("cpu")):  # the first weights are drawn, only to be replaced
            network = build_from_spec(about.spec)
        network.load_state_dict(dict(file.tensors))
    except (UserError, AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        words = str(error).partition("\n")[0] or type(error).__name__
        got = f"{file.words}, whose `tune_rescon` does not describe these tensors: {words.rstrip(':.')}"
        raise StorageError(explain(_RULE, got=got, where=where)) from error
    return network.eval(), about


def load_exported(path: Path, *, where: str) -> tuple[nn.Module, TrainedNetwork]:
    """Read a file and build its network. Raises as :func:`read_safetensors` and :func:`build_exported`."""
    return build_exported(read_safetensors(path, where=where), where=where)


def _plain(values: dict[str, object]) -> dict[str, object]:
    """JSON has lists where a trained network has tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
