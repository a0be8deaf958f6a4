"""A search put together as ``run_search`` does it, but for Ray, files and MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import StudyDirection

from tune_rescon.data import describe
from tune_rescon.spaces import Space, dump_space, grid_points, to_optuna
from tune_rescon.tuning import (
    Coordinator,
    Pricing,
    Proposer,
    SearchFolder,
    SearchPlan,
    SearchState,
    StoppingRule,
    StudyRecord,
    StudyResult,
    TrialSummary,
    datasets_of,
    default_data_root,
    make_rule,
    sum_up,
    write_atomically,
)
from tune_rescon.tuning.record.space_versions import note_space, read_versions
from tune_rescon.tuning.record.study import METRIC_AT
from tune_rescon.tuning.space_changes import check_changes

__all__ = ["SimulatedSearch"]


class SimulatedSearch:
    """A search of ``space``: its sampler, its stopping rule, its budget, and a record in memory."""

    def __init__(
        self,
        space: Space,
        *,
        rule: Callable[[], StoppingRule] | None = None,
        clock: Callable[[], float] | None = None,
        folder: SearchFolder | None = None,
    ) -> None:
        """Begin a record.

        Args:
            space: what is searched.
            rule: makes another stopping rule than the space's.
            clock: seconds of the simulation; the record's epochs end by it, from now on.
            folder: where the record and the space are kept, as a real search keeps them; None: in memory.
        """
        self._space = space
        self._rule = rule or (lambda: make_rule(space))
        self._now_ms = None if clock is None else _from_now(clock)
        self._storage: BaseStorage = InMemoryStorage()
        if folder is not None:
            folder.path.mkdir(parents=True)
            write_atomically(folder.space_yaml, dump_space(space))
            self._storage = RDBStorage(folder.study_url)
        better = StudyDirection.MAXIMIZE if space.metric.mode == "max" else StudyDirection.MINIMIZE
        objectives = [better, StudyDirection.MINIMIZE] if space.metric.against else [better]
        name = folder.name if folder else space.name
        self._study_id = self._storage.create_new_study(objectives, name)
        self._storage.set_study_user_attr(self._study_id, METRIC_AT, space.metric.at)
        self._versions = note_space(self._record(), None, space)

    def change(self, space: Space) -> None:
        """Have the next :meth:`policy` resume the search with another space.

        Raises:
            SpaceError: its trials do not allow that.
        """
        record = self._record()
        before = read_versions(record, lambda: self._space)
        check_changes(space.name, before.newest, space, record.trials())
        self._versions = note_space(record, before, space)
        self._space = space

    def policy(self) -> Coordinator:
        """A driver's coordinator: new, or going on with what the record holds."""
        record = self._record()
        return Coordinator(
            SearchPlan(
                total=self._space.budget.trials,
                group=self._group,
                cost=self._pricing.second_objective if self._space.metric.against else None,
            ),
            record,
            self._rule(),
            Proposer(self._space, rows=self._rows(), known=record.trials(), versions=self._versions),
            prune=lambda _number, _keep: None,
        )

    def trials(self) -> tuple[TrialSummary, ...]:
        """What the record holds, read anew."""
        return self._record().trials()

    def result(self, folder: Path, state: SearchState = SearchState.FINISHED) -> StudyResult:
        """What the record amounts to; ``folder`` is where the search says its files are."""
        return sum_up(
            self._pricing, self.trials(), name=self._space.name, folder=folder, state=state, tracking_uri=""
        )

    @property
    def _pricing(self) -> Pricing:
        facts = {
            dataset.name: describe(dataset, data_root=default_data_root())
            for dataset in datasets_of(self._space)
        }
        return Pricing(space=self._space, facts=facts)

    def _record(self) -> StudyRecord:
        return StudyRecord.on(
            self._storage, self._study_id, metric=self._space.metric.name, now_ms=self._now_ms
        )

    def _rows(self) -> list[dict[str, object]]:
        first = grid_points(self._space) if self._space.sampler.type == "grid" else self._space.initial
        return [to_optuna(row) for row in first]

    def _group(self, trial: TrialSummary) -> Hashable:
        name = self._space.scheduler.group_by
        return None if name is None else trial.setting(name)


def _from_now(clock: Callable[[], float]) -> Callable[[], int]:
    """Milliseconds since 1970, at the pace of ``clock``."""
    begun = time.time() - clock()
    return lambda: round((begun + clock()) * 1000)
