"""A search in this process, without Ray and without the MLflow worker process.

``run_search`` prepares the data and records the study as usual. The trials run one after the other in this
process, without a cluster, workers or Tune's controller. They use this package's searcher and scheduler, as
on Ray: a trial is suggested, reports by ``tune.report``, and is stopped by SystemExit. The writer's thread
calls MLflow.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from tests.mlflow_in_process import InProcessWorker, NoMlflow, mlflow_in_process
from tune_rescon.tuning import Coordinator, TrialRecord, TrialTask
from tune_rescon.tuning.ray.session import RaySession
from tune_rescon.tuning.ray.shutdown import DriverLock
from tune_rescon.tuning.ray.tune_adapter import ActorReuse, CoordinatorScheduler, CoordinatorSearcher
from tune_rescon.tuning.resources import Nodes

__all__ = ["search_without_ray"]

#: The resources of the only machine.
RESOURCES: Final = {"CPU": 2.0}


@contextmanager
def search_without_ray(empty_store: Path | None = None, *, mlflow: bool = True) -> Iterator[None]:
    """Make ``run_search``, and the commands that call it, run trials in this process within the block.

    Args:
        empty_store: A database of which a new MLflow store is a copy. Without it, MLflow creates each store.
        mlflow: Whether the searches are logged to MLflow. Its calls cost more than all else that they do.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        mlflow_in_process(empty_store, InProcessWorker if mlflow else NoMlflow),
    ):
        patch.setattr("tune_rescon.tuning.search.ray_session", _single_machine)
        patch.setattr("tune_rescon.tuning.ray.tune_adapter.execute", _execute_in_process)
        yield


@contextmanager
def _single_machine(address: str | None) -> Iterator[RaySession]:
    del address
    machine = Nodes(count=1, resources=RESOURCES)
    yield RaySession(resources=RESOURCES, now=(machine,), later=(), gone=lambda: "")


def _execute_in_process(
    coordinator: Coordinator,
    *,
    make_task: Callable[[TrialRecord], TrialTask],
    trainable: Callable[[dict[str, Any]], None],
    lock: DriverLock,
    **_resources: object,
) -> None:
    """Run trials as Tune does: the searcher suggests them, and the scheduler gets their reports."""
    searcher = CoordinatorSearcher(coordinator, make_task, lock)
    processes = ActorReuse(coordinator, resources=None, slots=0)
    scheduler = CoordinatorScheduler(coordinator, lock, processes, node_is_gone=lambda _: False)
    for identity in map(str, itertools.count()):
        config = searcher.suggest(identity)
        if config == Searcher.FINISHED:
            return
        assert isinstance(config, dict), "no trial runs, so there is nothing to wait for"
        _run_trial(identity, config, trainable, searcher, scheduler)


def _run_trial(
    identity: str,
    config: dict[str, Any],
    trainable: Callable[[dict[str, Any]], None],
    searcher: CoordinatorSearcher,
    scheduler: CoordinatorScheduler,
) -> None:
    trial = SimpleNamespace(config=config, node_ip=None)

    def report(metrics: dict[str, Any]) -> None:
        decision = scheduler.on_trial_result(None, trial, flatten_dict(metrics, delimiter="/"))
        if decision == TrialScheduler.STOP:
            raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.tune.report", report)
        try:
            trainable(config)
        except SystemExit:
            return
        except Exception:
            scheduler.on_trial_error(None, trial)
        else:
            searcher.on_trial_complete(identity)
