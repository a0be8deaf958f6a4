"""What can be said of a search, as plain values: no page, no plot, no terminal.

::

    shared_epoch, values_at   the epoch after which trials are compared fairly, and their values there
    rung_survival             who reached each rung, and who went on
    savings                   what early stopping did not have to train
    timeline                  which trial held which slot when, and how busy the slots were
    throughput                images trained per second, by all trials at once and by each device
    failures                  the trials that ended badly, by cause
    incumbents                the best value so far, by what had been spent
    cost_fronts               accuracy against each cost, and the trials no other dominates
    device_hours, devices_of  what was spent on each kind of device, and the kinds of a trial
    best_command              the best configuration as a command
    rank_classes              from the best few to the rest
    parameter_axes            where each trial is on each parameter's axis
"""

from tune_rescon.reporting.analysis.parameters import Axis, parameter_axes
from tune_rescon.reporting.analysis.summary import (
    CostFront,
    Failure,
    Incumbent,
    RankClass,
    RungSurvival,
    Savings,
    best_command,
    cost_fronts,
    device_hours,
    devices_of,
    failures,
    incumbents,
    rank_classes,
    rung_survival,
    savings,
    shared_epoch,
    values_at,
)
from tune_rescon.reporting.analysis.timeline import Stretch, Throughput, Timeline, throughput, timeline

__all__ = [
    "Axis",
    "CostFront",
    "Failure",
    "Incumbent",
    "RankClass",
    "RungSurvival",
    "Savings",
    "Stretch",
    "Throughput",
    "Timeline",
    "best_command",
    "cost_fronts",
    "device_hours",
    "devices_of",
    "failures",
    "incumbents",
    "parameter_axes",
    "rank_classes",
    "rung_survival",
    "savings",
    "shared_epoch",
    "throughput",
    "timeline",
    "values_at",
]
