"""Which trial a checkpoint belongs to, and what it has reported so far. Plain values; knows no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError, explain
from tune_rescon.models import NetworkSpec
from tune_rescon.training.report import is_better

__all__ = ["TrialRecord"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """A trial and its finished epochs."""

    config: TrialConfig
    spec: NetworkSpec
    dataset: str
    """Content key of its images and their split."""
    seed: int
    epochs: int
    """Length of the whole training: the schedule was laid over it."""
    history: tuple[Mapping[str, float], ...] = ()
    """Metrics of epochs 1, 2, ...; each one's ``epoch_seconds`` stops before its own checkpoint."""

    def extended(self, metrics: Mapping[str, float]) -> TrialRecord:
        """With one more epoch."""
        return dataclasses.replace(self, history=(*self.history, dict(metrics)))

    def best(self, metric: str, mode: str) -> float | None:
        """The best finite value of ``metric`` so far."""
        best = None
        for metrics in self.history:
            if is_better(metrics[metric], best, mode):
                best = metrics[metric]
        return best

    def continued(self, found: TrialRecord) -> TrialRecord:
        """``found``, read from a checkpoint, if it is this trial's.

        Raises:
            StorageError: it is another trial's: another configuration, network, dataset, seed or length.
        """
        fields = ("config", "spec", "dataset", "seed", "epochs")
        other = [name for name in fields if getattr(self, name) != getattr(found, name)]
        if other:
            rule = "a trial can only go on from its own checkpoint"
            hint = "Give each trial a checkpoint folder of its own."
            raise StorageError(explain(rule, got=f"one with another {', '.join(other)}", hint=hint))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "config": self.config.to_dict(),
            "spec": self.spec.to_dict(),
            "dataset": self.dataset,
            "seed": self.seed,
            "epochs": self.epochs,
            "history": [dict(metrics) for metrics in self.history],
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
