"""What must hold of the batches of trials that several processes train together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import explain
from tune_rescon.spaces.parameters import CategoricalParameter, Parameter
from tune_rescon.spaces.problems import Path, Problem

__all__ = ["broken_shares"]

#: Images of a batch that each worker must have: batch norm's variance of one is none.
_LEAST: Final = 2


def broken_shares(
    workers: int, fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> Iterator[Problem]:
    """The smallest batch has two images for each of several workers."""
    path, images = _smallest_batch(fixed, parameters)
    if workers > 1 and images < _LEAST * workers:
        rule = f"must be at least {_LEAST * workers}: {_LEAST} images for each of the {workers} `workers`"
        yield Problem(path=path, text=explain(rule, got=str(images)))


def _smallest_batch(fixed: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> tuple[Path, int]:
    parameter = parameters.get("batch_size")
    if isinstance(parameter, CategoricalParameter):
        return ("parameters", "batch_size", "choices"), min(parameter.choices)
    if parameter:
        return ("parameters", "batch_size", "low"), int(parameter.low)
    return ("fixed", "batch_size"), fixed.get("batch_size", TrialConfig().batch_size)
