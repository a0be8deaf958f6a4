"""Prepare the datasets on every machine of a cluster before the first trial, and measure a trial on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import DatasetInfo
from tune_rescon.errors import DataError, counted
from tune_rescon.spaces import AutoResources, Space
from tune_rescon.tuning.cost_model import datasets_of
from tune_rescon.tuning.options import RunOptions
from tune_rescon.tuning.prepare import PreparedData
from tune_rescon.tuning.ray.session import RaySession
from tune_rescon.tuning.ray.worker import HANG_FOLDER, check_images
from tune_rescon.tuning.resources import choose_resources, concurrent_trials, nodes_of, with_gpu_share

if TYPE_CHECKING:
    from tune_rescon.training.probe import Occupancy

__all__ = ["fit_to_cluster", "measured_on_gpu", "stage_data"]


#: Seconds between two messages that the preparation is still running.
_MESSAGE_EVERY: Final = 60.0

_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("tune_rescon.progress")


def fit_to_cluster(
    space: Space, options: RunOptions, data: PreparedData, ray: RaySession
) -> tuple[Space, int]:
    """Choose a trial's resources, prepare the data on the cluster, and measure how many trials share a GPU.

    The resources are chosen if the space has ``resources_per_trial: auto``, the data is prepared on the other
    machines if the search runs on a cluster (``options.address``), and the GPU is measured if the space has
    ``resources_per_trial.gpu: auto``.

    Args:
        space: The space of the search.
        options: The options of this run of the search.
        data: The datasets in this machine's cache.
        ray: The running Ray.

    Returns:
        The space with a trial's resources, and the number of trials that run at once.

    Raises:
        ResourceError: If no machine has the resources of a trial, or Ray has a GPU that torch cannot use.
        DataError: If the datasets cannot be prepared on a machine, or differ there; the message names the
            machine.
    """
    if isinstance(space.resources_per_trial, AutoResources):
        nodes = [*ray.now, *(ray.later or ())]
        space, message = choose_resources(space, nodes, where="the machines of this Ray")
        _PROGRESS.info(message)
    slots = _slots(space, ray)
    if options.address is not None:
        stage_data(
            datasets_of(space),
            digests=data.digests,
            data_root=options.data_root.resolve(),
            cache_root=options.cache_root.resolve(),
            need=space.resources_per_trial.by_name(),
        )
    if space.resources_per_trial.gpu == "auto":
        measure = functools.partial(measured_on_gpu, cache_root=options.cache_root.resolve())
        space, message = with_gpu_share(space, data.infos, measure)
        _PROGRESS.info(message)
        slots = _slots(space, ray)
    return space, slots


def _slots(space: Space, ray: RaySession) -> int:
    resources = space.resources_per_trial
    return concurrent_trials(
        ray.now, ray.later, resources.by_name(), space.budget.concurrent, workers=resources.workers
    )


def stage_data(
    datasets: Collection[DatasetConfig],
    *,
    digests: Mapping[str, str],
    data_root: Path,
    cache_root: Path,
    need: Mapping[str, float],
) -> None:
    """Fetch and decode the datasets on all other machines that can run a trial, in parallel.

    A machine that joins later prepares the datasets when its first trial begins. A machine that is lost
    during the preparation is skipped.

    Args:
        datasets: The datasets of the search.
        digests: The digest of each dataset's images and splits on this machine, by name.
        data_root: The folder of the original data on each machine.
        cache_root: The folder of the cache on each machine.
        need: The resources of a trial, by Ray's names; machines without room for them are skipped.

    Raises:
        DataError: If the datasets cannot be prepared on a machine, or differ there; the message names the
            machine.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    there = [
        node
        for node in ray.nodes()
        if node["NodeID"] != here and sum(kind.capacity(need) for kind in nodes_of([node]))
    ]
    if not there:
        return
    _PROGRESS.info(f"Preparing the data on {counted(len(there), 'other machine')}")
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_open)
    waiting = {}
    for node in there:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        on_it = task.options(scheduling_strategy=strategy)
        reference = on_it.remote(list(datasets), dict(digests), str(data_root), str(cache_root))
        waiting[reference] = node["NodeManagerAddress"]
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=_MESSAGE_EVERY)
        if not done:
            machines = counted(len(waiting), "machine")
            _PROGRESS.info(f"Still preparing the data on {machines}: {', '.join(waiting.values())}")
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
                _LOGGER.warning("the machine %s was lost while its data was prepared: %s", address, error)


def _open(datasets: list[DatasetConfig], digests: dict[str, str], data_root: str, cache_root: str) -> None:
    from tune_rescon.data import open_dataset

    for dataset in datasets:
        images = open_dataset(dataset, data_root=Path(data_root), cache_root=Path(cache_root))
        check_images(images, digests.get(dataset.name), name=dataset.name)


def measured_on_gpu(config: TrialConfig, info: DatasetInfo, *, cache_root: Path) -> Occupancy | None:
    """Measure a trial's occupancy of a whole GPU, in a separate process that ends with the measurement.

    If the capture of a CUDA graph hangs, the trial is measured without CUDA graphs, because trials on that
    node then train without them.

    Args:
        config: The configuration of the trial.
        info: The dataset's number of classes and channels.
        cache_root: The folder of the cache on the GPU's node.

    Returns:
        The occupancy; None if the batch does not fit into the GPU's memory.

    Raises:
        ResourceError: If Ray has a GPU that torch cannot use.
    """
    import ray
    from ray.exceptions import RayTaskError

    # max_calls=1: the process ends and frees its GPU memory. max_retries=1: a process that hangs is ended,
    # and the measurement is run again.
    task: Any = ray.remote(num_cpus=1, num_gpus=1, max_calls=1, max_retries=1)(_measure)
    try:
        occupancy: Occupancy | None = ray.get(task.remote(config, info, cache_root / HANG_FOLDER))
    except RayTaskError as error:
        raise error.cause from None
    return occupancy


def _measure(config: TrialConfig, info: DatasetInfo, hang_folder: Path) -> Occupancy | None:
    from tune_rescon.models import describe_network
    from tune_rescon.training.cuda_graphs import CaptureError, HangWatchdog
    from tune_rescon.training.device import resolve_device
    from tune_rescon.training.memory import OomHistory, ran_out_of_memory, release_memory
    from tune_rescon.training.probe import build_trial_step, measure_occupancy

    placement = resolve_device("cuda", precision=config.precision)
    images = {"classes": info.classes, "in_channels": info.channels}
    history = OomHistory.of(config, describe_network(config, **images), placement, None)
    # With the key of the trial, so that trials and measurements share what they have found.
    watchdog = HangWatchdog(folder=hang_folder, key=history.key)
    if watchdog.earlier_hang():
        config = dataclasses.replace(config, cuda_graphs="off")
    try:
        return measure_occupancy(build_trial_step(config, placement, **images, watchdog=watchdog), placement)
    except RuntimeError as error:
        if not isinstance(error, CaptureError):
            if ran_out_of_memory(error):
                return None
            raise
    # Outside the handler, because the exception holds the memory of the step that failed.
    release_memory()
    return _measure(dataclasses.replace(config, cuda_graphs="off"), info, hang_folder)
