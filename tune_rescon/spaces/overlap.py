"""Which trials of another search are ones that this space could have drawn, and why the rest are not.

A search that begins warm learns from an earlier one's trials. What it is told must be true of its own: "with
these parameters, a trial of mine has this value".
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter, Parameter, is_active, is_among
from tune_rescon.spaces.rules import why_outside
from tune_rescon.spaces.sampling import trial_config
from tune_rescon.spaces.space import Space

__all__ = ["Overlap", "overlap", "overlap_words", "place_config"]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a trial of another search is in this space."""

    sampled: Mapping[str, Any] | None
    """Its active parameters here, as :func:`.suggest` would have drawn them; None: it is no trial here."""
    differs: tuple[str, ...] = ()
    """What this space does not search and has another value of: fields, or dotted keys of the file."""
    outside: tuple[str, ...] = ()
    """Parameters that have no such value here."""

    @property
    def reason(self) -> str:
        """Why it is no trial of this space, in words; empty for one that is."""
        if self.differs:
            return f"differ in {', '.join(self.differs)}"
        return f"outside {', '.join(self.outside)}" if self.outside else ""


def overlap(space: Space, other: Space, sampled: Mapping[str, Any]) -> Overlap:
    """Place a trial of ``other`` in ``space``.

    It is one of ``space`` if a trial here could have been the very same: what ``space`` searches has a value
    that it can draw, and everything else (fixed, default, or a parameter that is not active) has the value
    that all its trials have. What a trial's value depends on beside its configuration must be the same too:
    ``metric.name``, ``fidelity.max`` (it sets the length of the learning-rate schedule) and the images and
    their split. Who drew the trial, who might have stopped it and what it ran on do not matter.
    Configurations are compared field by field: a preset, and the layout and depth that spell it out, count
    as different.

    Args:
        space: the search that learns.
        other: the search that the trial belongs to.
        sampled: the trial's active parameters in ``other``, as :func:`.suggest` gave them.

    Raises:
        ConfigError: ``sampled`` did not come from ``other``.
    """
    return _placed(space, trial_config(other, sampled).to_dict(), other)


def place_config(space: Space, config: Mapping[str, Any], other: Space | None = None) -> Overlap:
    """:func:`overlap` of a trial by the configuration that it ran with.

    Args:
        space: the search that learns.
        config: every field of the trial's :class:`.TrialConfig`.
        other: the search that the trial belongs to; None: ``space`` itself, as it is now.

    Raises:
        ConfigError: ``config`` is of another version of this package, which had other fields.
    """
    return _placed(space, TrialConfig.from_dict(config).to_dict(), other or space)


def _placed(space: Space, config: dict[str, Any], other: Space) -> Overlap:
    theirs = config | {"dataset": config["dataset"] or other.dataset.name}
    taken: dict[str, Any] = {}
    strange = []
    for name, parameter in space.parameters.items():
        if not is_active(parameter, taken):
            continue
        taken[name] = _as_drawn(parameter, theirs[name])
        if why_outside(parameter, taken[name]):
            strange.append(name)
    ours = trial_config(space, taken).to_dict()
    ours |= {"dataset": ours["dataset"] or space.dataset.name}
    # What has no value here cannot tell which parameters are active either: then none of them is compared.
    searched = space.parameters if strange else taken
    fields = [name for name in ours if name not in searched and not _same(ours[name], theirs[name])]
    differs = (*_unlike(space, other, theirs["dataset"]), *fields)
    fits = not differs and not strange
    return Overlap(sampled=taken if fits else None, differs=differs, outside=tuple(strange))


def overlap_words(name: str, placed: Sequence[Overlap]) -> str:
    """How many trials of the search ``name`` are used, and why the rest are not, the commonest reason first.

    >>> placed = [Overlap(sampled={"depth": 56}), Overlap(sampled=None, outside=("learning_rate",))]
    >>> overlap_words("first", placed)
    'used 1 of 2 trials of first: 1 outside learning_rate'
    """
    used = sum(one.sampled is not None for one in placed)
    reasons = Counter(one.reason for one in placed if one.reason)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"used {used} of {len(placed)} trials of {name}" + (f": {why}" if why else "")


def _unlike(space: Space, other: Space, dataset: str) -> Iterator[str]:
    """What differs between two spaces beside the configuration of a trial on ``dataset``."""
    if space.metric.name != other.metric.name:
        yield "metric.name"
    if space.fidelity.max != other.fidelity.max:
        yield "fidelity.max"
    ours, theirs = space.dataset_config(dataset), other.dataset_config(dataset)
    for field in dataclasses.fields(DatasetConfig):
        if getattr(ours, field.name) != getattr(theirs, field.name):
            yield f"dataset.{field.name}"


def _as_drawn(parameter: Parameter, value: Any) -> Any:
    """A configuration's value in the type that the parameter has it in: a choice's own, a whole number's."""
    if isinstance(parameter, CategoricalParameter):
        return next((choice for choice in parameter.choices if _same(choice, value)), value)
    if isinstance(parameter, IntParameter) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _same(a: Any, b: Any) -> bool:
    return is_among(a, [b])
