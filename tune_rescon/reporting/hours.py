"""The hours of a search: for which it held cores or GPUs, and those that early stopping saved.

Core-hours and GPU-hours are never added. A search may have both, because a resume may move it to another
machine.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tune_rescon.config import TrialState
from tune_rescon.reporting.formatting import device_hours_unit
from tune_rescon.tuning import StudyResult, TrialRecord

__all__ = [
    "Savings",
    "device_hours",
    "has_moved",
    "hours_by_unit",
    "hours_unit",
    "named_device",
    "reserved_hours",
    "savings",
    "spent_hours",
    "spent_seconds",
    "spent_unit",
    "trial_hours",
]


def device_hours(result: StudyResult) -> dict[str, float]:
    """Return the device-hours by kind of device, in descending order.

    Each epoch counts for the kind that it ran on. A trial that changed its device counts for several kinds.
    """
    hours: defaultdict[str, float] = defaultdict(float)
    for trial in result.trials:
        for epoch, seconds in enumerate(trial.device_seconds(result.devices_per_trial)):
            if seconds:
                # An earlier version recorded no kind.
                kind = trial.devices[epoch] if epoch < len(trial.devices) else None
                hours[kind or "unknown"] += seconds / 3600
    return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))


def hours_by_unit(trials: Iterable[TrialRecord], *, device: str, devices: float) -> dict[str, float]:
    """Return the hours of cores and of GPUs apart, because a search may move from one to the other.

    Args:
        trials: the trials.
        device: the device that trials have now, as in :attr:`.StudyResult.device`. Its hours are first.
        devices: the number of devices for epochs whose own number is not recorded.
    """
    hours = dict.fromkeys(_units(device), 0.0)
    for trial in trials:
        for unit, spent in _epoch_hours(trial, device=device, devices=devices):
            hours[unit] += spent
    return {name: spent for name, spent in hours.items() if spent or name == device_hours_unit(device)}


def named_device(trials: Iterable[TrialRecord], device: str) -> str:
    """Return the device after which hours are named.

    It is just a GPU if trials ran on several kinds, because a resume may have asked for another kind.

    Args:
        trials: the trials.
        device: the device that trials have now, as in :attr:`.StudyResult.device`.
    """
    kinds = {kind for trial in trials for kind in trial.devices if kind not in (None, "CPU")}
    return "GPU" if len(kinds) > 1 and device != "CPU" else device


def _units(device: str) -> tuple[str, str]:
    """Return the unit of hours of a device, and that of the other kind of device."""
    return device_hours_unit(device), device_hours_unit("GPU" if device == "CPU" else "CPU")


def _epoch_hours(trial: TrialRecord, *, device: str, devices: float) -> Iterator[tuple[str, float]]:
    """Yield the unit and the hours of each epoch of a trial; see :func:`hours_by_unit`."""
    unit, other = _units(device)
    kinds = itertools.chain(trial.devices, itertools.repeat(None))
    for kind, seconds in zip(kinds, trial.device_seconds(devices), strict=False):
        moved = kind is not None and (kind == "CPU") is not (device == "CPU")
        yield other if moved else unit, seconds / 3600


def reserved_hours(result: StudyResult) -> dict[str, float]:
    """Return the device-hours of a search, by unit; see :func:`hours_by_unit`."""
    device = named_device(result.trials, result.device)
    return hours_by_unit(result.trials, device=device, devices=result.devices_per_trial)


def trial_hours(result: StudyResult, trial: TrialRecord) -> dict[str, float]:
    """Return the hours for which one trial held devices, by unit.

    They have two units if a resume moved the trial between cores and GPUs.
    """
    hours = hours_by_unit([trial], device=result.device, devices=result.devices_per_trial)
    return {unit: spent for unit, spent in hours.items() if spent} or hours


def hours_unit(result: StudyResult) -> str:
    """Return the unit of a sum of hours in a search; two units if it has moved between cores and GPUs."""
    return " and ".join(reserved_hours(result))


def has_moved(result: StudyResult) -> bool:
    """Return whether some epochs ran on cores and others on GPUs. Their hours have no common unit."""
    return len(reserved_hours(result)) > 1


def spent_unit(result: StudyResult) -> str:
    """Return the unit of :func:`spent_hours`, by which the curves of the best trial so far are drawn."""
    return "training hours" if has_moved(result) else hours_unit(result)


def spent_hours(result: StudyResult, trials: Iterable[TrialRecord]) -> float:
    """Return the hours that trials have spent, in the unit of :func:`spent_unit`.

    They are device-hours. If the search has moved between cores and GPUs, they are the hours of the epochs,
    whatever devices the trials had, because core-hours and GPU-hours must not be added.
    """
    seconds = spent_seconds(result)
    return math.fsum(spent for trial in trials for spent in seconds(trial)) / 3600


def spent_seconds(result: StudyResult) -> Callable[[TrialRecord], Sequence[float]]:
    """Return a function of a trial: the seconds that each of its epochs adds to :func:`spent_hours`."""
    if not has_moved(result):
        return lambda trial: trial.device_seconds(result.devices_per_trial)

    def seconds(trial: TrialRecord) -> Sequence[float]:
        return [each if math.isfinite(each) else 0.0 for each in trial.history.get("epoch_seconds", ())]

    return seconds


@dataclass(frozen=True, kw_only=True)
class Savings:
    """The epochs that ran, and the epochs that early stopping saved."""

    epochs: int
    """Epochs that ran."""
    epochs_saved: int
    hours: float
    """Device-hours of the epochs that ran; without a unit if the search has moved: see :func:`has_moved`."""
    hours_saved: Mapping[str, float]
    """Estimated device-hours of the saved epochs, by unit. The estimate of a stopped trial is the mean of its
    epochs on the kind of device that it had last, times its saved epochs."""

    @property
    def share(self) -> float:
        """Saved epochs as a fraction of all epochs that would have run, 0..1."""
        return self.epochs_saved / max(self.epochs + self.epochs_saved, 1)


def savings(result: StudyResult) -> Savings:
    """Return the savings by the stopped trials. Diverged and failed trials count as saving nothing."""
    stopped = [trial for trial in result.trials if trial.state is TrialState.STOPPED and trial.epochs]
    last = result.rungs[-1]
    device = named_device(result.trials, result.device)
    hours_saved = {device_hours_unit(device): 0.0}
    for trial in stopped:
        epochs = list(_epoch_hours(trial, device=device, devices=result.devices_per_trial))
        if epochs:
            unit, _ = epochs[-1]
            on_it = [hours for name, hours in epochs if name == unit]
            saved = math.fsum(on_it) / len(on_it) * (last - trial.epochs)
            hours_saved[unit] = hours_saved.get(unit, 0.0) + saved
    return Savings(
        epochs=sum(trial.epochs for trial in result.trials),
        epochs_saved=sum(last - trial.epochs for trial in stopped),
        hours=math.fsum(result.compute_hours(trial) for trial in result.trials),
        hours_saved=hours_saved,
    )
