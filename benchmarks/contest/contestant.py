"""What a contestant of the benchmark on recorded curves is told, and the parts that rivals share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.requirements import Requirement

from contest.recorded import Table
from tune_rescon.config import TrialState
from tune_rescon.spaces import Space, load_space
from tune_rescon.testing import SearchPolicy

__all__ = ["Contest", "Contestant", "Drawn", "Library", "RivalPolicy", "space_of"]

#: Number of trials that no search here reaches.
UNLIMITED = 100_000


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What a contestant is told. One that plans has either ``epochs`` or ``seconds``; others have neither."""

    table: Table
    seed: int
    workers: int
    clock: Callable[[], float]
    epochs: int | None = None
    seconds: float | None = None

    @property
    def budget_epochs(self) -> int:
        """The budget in epochs, at the mean duration of an epoch."""
        if self.epochs is not None:
            return self.epochs
        assert self.seconds is not None
        return round(self.seconds * self.workers / float(self.table.seconds.mean()))


Contestant = Callable[[Contest], SearchPolicy]


def space_of(contest: Contest, **sections: Mapping[str, object]) -> Space:
    """Return a space with the table's parameters. Their names are not those of a network: unchecked."""
    base = load_space("att92", ["initial=[]"])
    changes: dict[str, dict[str, object]] = {
        "fidelity": {"min": 1, "max": contest.table.last},
        "budget": {"trials": UNLIMITED},
        "sampler": {"seed": contest.seed},
        "scheduler": {"type": "asha", "variant": "stop", "reduction_factor": 3},
    }
    for name, keys in sections.items():
        changes[name] = {**changes.get(name, {}), **keys}
    updated = {name: getattr(base, name).model_copy(update=keys) for name, keys in changes.items()}
    return base.model_copy(update={**updated, "parameters": dict(contest.table.parameters)})


@dataclass(frozen=True, kw_only=True)
class Library:
    """A package that a contestant needs, and that this project does not install."""

    requirement: str
    """The package and its versions that have the contestant."""
    install: str
    """The arguments of ``pip install``. A package that asks for an older numpy is installed without its
    requirements, in a directory apart, which is then put on PYTHONPATH."""

    @property
    def installed(self) -> str | None:
        """The version that is installed; None if the package is not."""
        try:
            return version(Requirement(self.requirement).name)
        except PackageNotFoundError:
            return None

    @property
    def is_there(self) -> bool:
        """Whether one of these versions is installed."""
        return self.installed is not None and Requirement(self.requirement).specifier.contains(self.installed)

    @property
    def missing(self) -> str:
        """What to tell a user who does not have it."""
        return (
            f"needs {self.requirement}, and {self.installed or 'none'} is installed here:"
            f" pip install {self.install}"
        )


@dataclass(kw_only=True)
class Drawn:
    """A trial of a rival."""

    number: int
    parameters: Mapping[str, Any]
    epochs: int = 0


class RivalPolicy:
    """A policy whose trials neither crash nor lose their workers."""

    @property
    def no_more_trials(self) -> bool:
        """Whether no trial is left to begin or to continue."""
        return False

    def close(self, number: int, state: TrialState, *, error: str | None = None) -> None:
        raise AssertionError(f"no recorded curve crashes, but trial {number} is {state}: {error}")

    def worker_failed(self, number: int) -> None:
        raise AssertionError(f"trial {number} cannot lose its worker: none dies in the contest")
