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

from tune_rescon.reporting.analysis.axes import Axis, parameter_axes
from tune_rescon.reporting.analysis.classes import RankClass, rank_classes
from tune_rescon.reporting.analysis.command import best_command
from tune_rescon.reporting.analysis.costs import CostFront, cost_fronts
from tune_rescon.reporting.analysis.devices import device_hours, devices_of
from tune_rescon.reporting.analysis.failures import Failure, failures
from tune_rescon.reporting.analysis.fairness import shared_epoch, values_at
from tune_rescon.reporting.analysis.incumbents import Incumbent, incumbents
from tune_rescon.reporting.analysis.savings import Savings, savings
from tune_rescon.reporting.analysis.survival import RungSurvival, rung_survival
from tune_rescon.reporting.analysis.throughput import Throughput, throughput
from tune_rescon.reporting.analysis.timeline import Stretch, Timeline, timeline

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
