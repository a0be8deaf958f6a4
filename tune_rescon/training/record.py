"""Which trial a checkpoint belongs to, and what it has reported so far. Plain values; knows no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError, explain
from tune_rescon.models import NetworkSpec

if TYPE_CHECKING:
    from tune_rescon.training.trained import TrainedNetwork

__all__ = ["TrialRecord"]

#: What makes a trial this one; the names are those of TrainedNetwork too.
_IDENTITY: Final = ("config", "spec", "dataset", "seed")


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial and how far it has come."""

    config: TrialConfig
    spec: NetworkSpec
    dataset: str
    """Content key of its images and their split."""
    seed: int
    epochs: int
    """Length of the whole training: the schedule was laid over it."""
    history: tuple[Mapping[str, float], ...] = ()
    """Metrics of epochs 1, 2, ...; each one's ``epoch_seconds`` stops before its own checkpoint."""
    batches: int = 0
    """Batches trained of the epoch after those."""
    micro_batches: int = 1
    """Pieces a batch is cut into, as the memory was found to demand: what goes on starts with them."""
    recomputes: bool = False
    """Whether activations are computed again, likewise."""

    def extended(self, metrics: Mapping[str, float]) -> TrialRecord:
        """With one more epoch."""
        return dataclasses.replace(self, history=(*self.history, dict(metrics)), batches=0)

    def continued(self, found: TrialRecord) -> TrialRecord:
        """``found``, read from a checkpoint, if it is this trial's.

        Raises:
            StorageError: it is another trial's: another configuration, network, dataset, seed or length.
        """
        self._require_same(found, (*_IDENTITY, "epochs"))
        return found

    def check_own(self, network: TrainedNetwork) -> None:
        """Check that a trained network is this trial's.

        Raises:
            StorageError: it is another trial's: another configuration, network, dataset or seed.
        """
        self._require_same(network, _IDENTITY)

    def _require_same(self, found: TrialRecord | TrainedNetwork, names: tuple[str, ...]) -> None:
        other = [name for name in names if getattr(self, name) != getattr(found, name)]
        if other:
            rule = "a trial can only go on from its own checkpoint"
            hint = "Give each trial a checkpoint folder of its own."
            raise StorageError(explain(rule, got=f"one with another {', '.join(other)}", hint=hint))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "config": self.config.to_dict(),
            "spec": self.spec.to_dict(),
            "dataset": self.dataset,
            "seed": self.seed,
            "epochs": self.epochs,
            "history": [dict(metrics) for metrics in self.history],
            "batches": self.batches,
            "micro_batches": self.micro_batches,
            "recomputes": self.recomputes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialRecord:
        """Back from :meth:`to_dict`.

        Raises:
            ConfigError, NetworkError: another version wrote it.
        """
        nested = {
            "config": TrialConfig.from_dict(values["config"]),
            "spec": NetworkSpec.from_dict(values["spec"]),
            "history": tuple(values["history"]),
        }
        return cls(**{**values, **nested})
