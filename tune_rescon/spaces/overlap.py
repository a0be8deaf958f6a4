"""Find the trials of another search that this space could have drawn, and the reasons why the others differ.

A warm-started search learns from the trials of an earlier one. Each of these trials must be valid for the new
search too: a trial of the new search with these parameters would have this value.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.errors import counted
from tune_rescon.spaces.field_rules import why_outside
from tune_rescon.spaces.parameters import CategoricalParameter, IntParameter, Parameter, is_active, is_among
from tune_rescon.spaces.sampling import trial_config
from tune_rescon.spaces.space import Space

__all__ = ["Overlap", "overlap", "overlap_message", "place_config"]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """A trial of another search, placed in this space."""

    sampled: Mapping[str, Any] | None
    """The active parameters here, as :func:`.suggest` would draw them; None if the trial does not fit."""
    differs: tuple[str, ...] = ()
    """Fields, or dotted keys of the file, that this space does not search and whose value differs here."""
    outside: tuple[str, ...] = ()
    """Parameters whose range or choices here do not contain the trial's value."""

    @property
    def reason(self) -> str:
        """Why the trial does not fit this space, in words; empty if it fits."""
        if self.differs:
            return f"differ in {', '.join(self.differs)}"
        return f"outside {', '.join(self.outside)}" if self.outside else ""


def overlap(space: Space, other: Space, sampled: Mapping[str, Any]) -> Overlap:
    """Place a trial of ``other`` in ``space``.

    The trial fits ``space`` if a trial of ``space`` could have been identical: each parameter that ``space``
    searches has a value that ``space`` can draw, and every other field (fixed, default, or an inactive
    parameter) has the value that all trials of ``space`` have. Everything else on which a trial's value
    depends must be equal too: the metric, ``fidelity.max`` (it sets the length of the learning-rate
    schedule), the images and their split. The sampler, the stopping rule and the hardware do not matter.
    Configurations are compared field by field: a preset counts as different from the same layout and depth
    written out.

    Args:
        space: the search that learns.
        other: the search to which the trial belongs.
        sampled: the trial's active parameters in ``other``, as :func:`.suggest` returned them.

    Raises:
        ConfigError: ``sampled`` does not come from ``other``.
    """
    return _placed(space, trial_config(other, sampled).to_dict(), other)


def place_config(space: Space, config: Mapping[str, Any], other: Space | None = None) -> Overlap:
    """Place a trial in ``space`` by the configuration that it ran with; see :func:`overlap`.

    Args:
        space: the search that learns.
        config: every field of the trial's :class:`.TrialConfig`.
        other: the search to which the trial belongs; None: ``space`` itself, in its present state.

    Raises:
        ConfigError: ``config`` comes from a version of this package with other fields.
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
    # A value outside the space does not decide which parameters are active, so no searched one is compared.
    searched = space.parameters if strange else taken
    fields = [name for name in ours if name not in searched and not _same(ours[name], theirs[name])]
    differs = (*_unlike(space, other, theirs["dataset"]), *fields)
    fits = not differs and not strange
    return Overlap(sampled=taken if fits else None, differs=differs, outside=tuple(strange))


def overlap_message(name: str, placed: Sequence[Overlap]) -> str:
    """Report how many trials of search ``name`` are used, and why the others are not, by frequency.

    >>> placed = [Overlap(sampled={"depth": 56}), Overlap(sampled=None, outside=("learning_rate",))]
    >>> overlap_message("first", placed)
    'used 1 of 2 trials of first: 1 outside learning_rate'
    """
    used = sum(one.sampled is not None for one in placed)
    reasons = Counter(one.reason for one in placed if one.reason)
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"used {used} of {counted(len(placed), 'trial')} of {name}" + (f": {why}" if why else "")


def _unlike(space: Space, other: Space, dataset: str) -> Iterator[str]:
    """Yield the differences between two spaces beyond the configuration of a trial on ``dataset``."""
    if space.metric.name != other.metric.name:
        yield "metric.name"
    elif space.metric.function != other.metric.function:
        yield f"the function of {space.metric.name}"
    if space.fidelity.max != other.fidelity.max:
        yield "fidelity.max"
    ours, theirs = space.dataset_config(dataset), other.dataset_config(dataset)
    for field in dataclasses.fields(DatasetConfig):
        if getattr(ours, field.name) != getattr(theirs, field.name):
            yield f"dataset.{field.name}"


def _as_drawn(parameter: Parameter, value: Any) -> Any:
    """Return a configuration's value in the parameter's type: as one of the choices, or as a whole number."""
    if isinstance(parameter, CategoricalParameter):
        return next((choice for choice in parameter.choices if _same(choice, value)), value)
    if isinstance(parameter, IntParameter) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _same(a: Any, b: Any) -> bool:
    return is_among(a, [b])
