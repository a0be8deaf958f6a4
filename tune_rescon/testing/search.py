"""A search put together as ``run_search`` does it, but for Ray, files and MLflow."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection

from tune_rescon.spaces import Space, grid_points, to_optuna
from tune_rescon.tuning import (
    Coordinator,
    Proposer,
    SearchPlan,
    StoppingRule,
    StudyRecord,
    TrialSummary,
)
from tune_rescon.tuning.rules.ladder import make_rule

__all__ = ["SimulatedSearch"]


class SimulatedSearch:
    """A search of ``space``: its sampler, its stopping rule, its budget, and a record in memory."""

    def __init__(self, space: Space, *, rule: Callable[[], StoppingRule] | None = None) -> None:
        """Begin a record. ``rule`` makes another stopping rule than the space's."""
        self._space = space
        self._rule = rule or (lambda: make_rule(space))
        self._storage: BaseStorage = InMemoryStorage()
        better = StudyDirection.MAXIMIZE if space.metric.mode == "max" else StudyDirection.MINIMIZE
        self._study_id = self._storage.create_new_study([better], "simulated")

    def policy(self) -> Coordinator:
        """A driver's coordinator: new, or going on with what the record holds."""
        record = self._record()
        return Coordinator(
            SearchPlan(total=self._space.budget.trials, group=self._group),
            record,
            self._rule(),
            Proposer(self._space, rows=self._rows(), known=record.trials()),
            prune=lambda _number, _keep: None,
        )

    def trials(self) -> tuple[TrialSummary, ...]:
        """What the record holds, read anew."""
        return self._record().trials()

    def _record(self) -> StudyRecord:
        return StudyRecord.on(self._storage, self._study_id, metric=self._space.metric.name)

    def _rows(self) -> list[dict[str, object]]:
        first = grid_points(self._space) if self._space.sampler.type == "grid" else self._space.initial
        return [to_optuna(row) for row in first]

    def _group(self, trial: TrialSummary) -> Hashable:
        name = self._space.scheduler.group_by
        return None if name is None else trial.parameters.get(name)
