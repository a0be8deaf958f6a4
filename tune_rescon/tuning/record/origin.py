"""What a trial was drawn as: written when it begins, and never changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune_rescon.errors import ConfigError
from tune_rescon.spaces import Space, from_optuna, trial_config

__all__ = ["TrialOrigin", "find_origin", "make_origin", "trial_seed"]


@dataclass(frozen=True, kw_only=True)
class TrialOrigin:
    """What a trial runs with, and where that came from.

    A resumed search may have another space. Everything that trains, prices, shows or retrains a trial reads
    this instead of the space.
    """

    config: Mapping[str, Any]
    """Every field of its :class:`.TrialConfig`, as plain values."""
    space: int
    """The version of the space it was drawn from, counted from 1: see :mod:`.space_versions`."""
    seed: int
    """Of its training."""
    inactive: tuple[str, ...] = ()
    """Parameters of that space which the trial does not have, because their ``when`` does not hold."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return {
            "config": dict(self.config),
            "space": self.space,
            "seed": self.seed,
            "inactive": list(self.inactive),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialOrigin:
        """Back from :meth:`to_dict`; JSON's lists become tuples."""
        config = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["config"].items()
        }
        return cls(
            config=config, space=values["space"], seed=values["seed"], inactive=tuple(values["inactive"])
        )


def make_origin(space: Space, parameters: Mapping[str, Any], *, version: int, number: int) -> TrialOrigin:
    """The origin of trial ``number``, drawn from version ``version`` of the space.

    Args:
        space: that version.
        parameters: the active parameters, as Optuna holds them.
        version: counted from 1.
        number: the trial's.

    Raises:
        KeyError, ValueError: ``parameters`` did not come from this space.
        ConfigError: likewise.
    """
    return TrialOrigin(
        config=trial_config(space, from_optuna(space, parameters)).to_dict(),
        space=version,
        seed=trial_seed(space.sampler.seed, number),
        inactive=tuple(name for name in space.parameters if name not in parameters),
    )


def find_origin(
    space: Space, parameters: Mapping[str, Any], *, version: int, number: int
) -> TrialOrigin | None:
    """:func:`make_origin`; None if ``parameters`` did not come from this space."""
    try:
        return make_origin(space, parameters, version=version, number=number)
    except (ConfigError, KeyError, ValueError):
        return None


def trial_seed(search_seed: int, number: int) -> int:
    """The training seed of a trial: the same for the same search seed and number, whatever ran beside it.

    >>> trial_seed(0, 7) == trial_seed(0, 7), trial_seed(0, 7) == trial_seed(0, 8)
    (True, False)
    """
    return int(np.random.SeedSequence((search_seed, number)).generate_state(1)[0])
