"""What a trial's process imports, before there is a trial: while the driver still prepares the search."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

from tune_rescon.spaces import Space
from tune_rescon.tuning.options import RunOptions

__all__ = ["can_warm", "import_training", "warm_workers"]

#: What brings the libraries that a trial uses.
_NEEDED: Final = ("ray.tune", "tune_rescon.training.trial", "tune_rescon.tuning.execution.training")


def import_training() -> None:
    """Import what a trial needs; once in a process, seconds."""
    from tune_rescon.training.lean import import_lean_torchmetrics

    import_lean_torchmetrics()
    for module in _NEEDED:
        importlib.import_module(module)


def can_warm(space: Space, options: RunOptions) -> bool:
    """Whether processes that are warmed are those that trials get.

    Not on a cluster, which would start machines for it. Not with GPUs: Ray may give a process another GPU for
    its trial than it had for the task, and which one it sees is settled when CUDA is first used.
    """
    return options.address is None and not space.resources_per_trial.gpu


def warm_workers(resources: Mapping[str, float], *, workers: int) -> None:
    """Have ``workers`` processes of the Ray that is connected import what trials need; does not wait.

    Each is a task with a trial's ``resources``: so there are no more of them than trials run at once, and Ray
    gives the trials that follow the processes of the tasks that have ended. One that fails costs nothing: its
    trial imports by itself.
    """
    import ray

    amounts = {name: amount for name, amount in resources.items() if amount}
    task = ray.remote(max_retries=0)(import_training).options(
        num_cpus=amounts.pop("CPU", 0), num_gpus=amounts.pop("GPU", 0), resources=amounts
    )
    for _ in range(workers):
        task.remote()
