"""The data on every machine of a cluster, before the first trial asks for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from tune_rescon.config import DatasetConfig
from tune_rescon.errors import DataError
from tune_rescon.tuning.execution.room import nodes_of

__all__ = ["stage_data"]

#: Seconds between two words that it is still going on.
_WORD_EVERY: Final = 60.0

_LOGGER = logging.getLogger(__name__)


def stage_data(
    datasets: Collection[DatasetConfig],
    *,
    data_root: Path,
    cache_root: Path,
    need: Mapping[str, float],
    say: Callable[[str], object],
) -> None:
    """Have each other machine that a trial may land on fetch and decode the datasets, all at once.

    One that joins later does it when its first trial begins; one that is lost meanwhile is left out.

    Raises:
        DataError: a machine cannot have them; it says which.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    there = [
        node
        for node in ray.nodes()
        if node["NodeID"] != here and sum(kind.room(need) for kind in nodes_of([node]))
    ]
    if not there:
        return
    say(f"The data is put on {len(there)} other machine{'s' * (len(there) > 1)}")
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_open)
    waiting = {}
    for node in there:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        on_it = task.options(scheduling_strategy=strategy)
        waiting[on_it.remote(list(datasets), str(data_root), str(cache_root))] = node["NodeManagerAddress"]
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=_WORD_EVERY)
        if not done:
            say(f"{len(waiting)} machines are still at it: {', '.join(waiting.values())}")
        for reference in done:
            address = waiting.pop(reference)
            try:
                ray.get(reference)
            except RayTaskError as error:
                cause = error.cause
                raise (
                    DataError(f"on {address}: {cause}") if isinstance(cause, DataError) else cause
                ) from None
            except RayError as error:
                _LOGGER.warning("the machine %s was lost while it got the data: %s", address, error)


def _open(datasets: list[DatasetConfig], data_root: str, cache_root: str) -> None:
    from tune_rescon.data import open_dataset

    for dataset in datasets:
        open_dataset(dataset, data_root=Path(data_root), cache_root=Path(cache_root))
