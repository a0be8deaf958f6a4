"""A trial's step, measured on one of Ray's GPUs before the first trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetFacts
from tune_rescon.tuning.execution.training import STALLS

if TYPE_CHECKING:
    from tune_rescon.training.gpu_probe import Occupancy

__all__ = ["measured_on_gpu"]


def measured_on_gpu(config: TrialConfig, facts: DatasetFacts, *, cache_root: Path) -> Occupancy | None:
    """Measure on a whole GPU, in a process that ends with it; None: the batch does not fit.

    A CUDA graph whose recording never comes back is measured without, as trials there then train
    (``cache_root`` is the GPU's node's).

    Raises:
        ResourceError: Ray has a GPU, torch cannot use it.
    """
    import ray
    from ray.exceptions import RayTaskError

    # max_calls: the process goes, and with it what it holds of the GPU. A retry, for one that stood still.
    task: Any = ray.remote(num_cpus=1, num_gpus=1, max_calls=1, max_retries=1)(_measure)
    try:
        found: Occupancy | None = ray.get(task.remote(config, facts, cache_root / STALLS))
    except RayTaskError as error:
        raise error.cause from None
    return found


def _measure(config: TrialConfig, facts: DatasetFacts, stalls: Path) -> Occupancy | None:
    from tune_rescon.models import resolve_network
    from tune_rescon.training.cuda_graphs import RecordingError, StallWatch
    from tune_rescon.training.device import place
    from tune_rescon.training.gpu_probe import measure_occupancy, step_of
    from tune_rescon.training.memory import Shape, ran_out_of_memory

    placement = place("cuda", precision=config.precision)
    images = {"classes": facts.classes, "in_channels": facts.channels}
    shape = Shape.of(config, resolve_network(config, **images), placement, None)
    watch = StallWatch(folder=stalls, key=shape.key)  # a trial's
    if watch.found():
        config = dataclasses.replace(config, cuda_graphs="off")
    try:
        step = step_of(config, placement, **images, watch=watch)
        return measure_occupancy(step, placement)
    except RecordingError:
        return _measure(dataclasses.replace(config, cuda_graphs="off"), facts, stalls)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            return None
        raise
