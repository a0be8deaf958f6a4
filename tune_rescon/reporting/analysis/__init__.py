"""The figures of a search as plain values, without a page, a plot or a terminal.

::

    shared_epoch, values_at   the epoch after which trials are compared fairly, and their values there
    rung_survival             the trials that reached each rung, and those that continued after it
    savings                   the epochs that early stopping saved
    timeline                  which trial held which slot when, and how busy the slots were
    gpu_use                   how busy the GPUs were, and what else than training steps took their time
    throughput                images trained per second, by all trials at once and by each device
    failures                  the trials that failed, by cause
    groups                    what each network reached for what it cost
    incumbents                the best value so far, by the device-hours spent
    cost_fronts               accuracy against each cost, and the trials that no other dominates
    device_hours, devices_of  the hours spent on each kind of device, and the kinds of a trial
    best_command              the command that trains the best configuration
    rank_classes              classes of trials by rank, from the best tenth to the rest
    parameter_axes            the position of each trial on each parameter's axis
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names
from tune_rescon.reporting.analysis.parameters import Axis, parameter_axes
from tune_rescon.reporting.analysis.summary import (
    CostFront,
    Failure,
    Group,
    Incumbent,
    RankClass,
    RungSurvival,
    Savings,
    best_command,
    cost_fronts,
    device_hours,
    devices_of,
    failures,
    grouping,
    groups,
    incumbents,
    rank_classes,
    rung_survival,
    savings,
    shared_epoch,
    values_at,
)
from tune_rescon.reporting.analysis.timeline import (
    GpuUse,
    Stretch,
    Throughput,
    Timeline,
    gpu_use,
    throughput,
    timeline,
)

if not TYPE_CHECKING:  # hidden from the type checker, which would accept any name
    __getattr__, __all__ = lazy_names(__name__)
