"""Steer a search from another process: add a trial of chosen values, or stop a trial.

Both write to the search's study, which its driver reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from tune_rescon.errors import SpaceError, StorageError, format_error
from tune_rescon.spaces import chosen_values, to_optuna
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning.database import find_study, open_database
from tune_rescon.tuning.options import SearchLocation, command_at
from tune_rescon.tuning.reader import read_search
from tune_rescon.tuning.search_storage import find_search
from tune_rescon.tuning.study import FIXED_PARAMS, STOP_REQUESTED

__all__ = ["enqueue_trial", "stop_trials"]

#: Seconds that this process waits for the driver's transaction on a SQLite file.
_BUSY_SECONDS: Final = 30.0


def enqueue_trial(
    location: SearchLocation, name: str, settings: Sequence[str]
) -> tuple[int, Mapping[str, Any]]:
    """Enqueue a trial in the study of a search, whether the search runs or not.

    The search draws the parameters that are not given.

    Args:
        location: Where the searches are.
        name: The name of the search.
        settings: ``KEY=VALUE`` for each given parameter.

    Returns:
        The number of the trial, and the given values.

    Raises:
        SpaceError: If a value is not one of the search's space, or no value is given.
        StorageError: If the search does not exist, or its study is on its driver's machine.
    """
    _check_reachable(location)
    space = read_search(location, name).space
    values = chosen_values(space, settings)
    if not values:
        hint = f"Give --set KEY=VALUE. The parameters are {', '.join(space.parameters)}."
        raise SpaceError(
            format_error("at least one value must be given", got="none", where="--set", hint=hint)
        )
    storage = _open(location, name)
    # Not `Study.enqueue_trial`, which does the same but returns no number.
    waiting = create_trial(state=OptunaState.WAITING, system_attrs={FIXED_PARAMS: to_optuna(values)})
    trial_id = storage.create_new_trial(find_study(storage, name), template_trial=waiting)
    return storage.get_trial(trial_id).number, values


def stop_trials(location: SearchLocation, name: str, numbers: Sequence[int]) -> None:
    """Request that trials of a search are stopped, whether the search runs or not.

    The driver stops a running trial after its current epoch. It closes an interrupted or paused trial when
    the trial would be resumed.

    Args:
        location: Where the searches are.
        name: The name of the search.
        numbers: The trials.

    Raises:
        StorageError: If the search does not exist, its study is on its driver's machine, or a trial does not
            exist, has not begun or has ended. Then no trial is stopped.
    """
    _check_reachable(location)
    trials = {trial.number: trial for trial in read_search(location, name).trials}
    storage = _open(location, name)
    study_id = find_study(storage, name)
    enqueued = storage.get_all_trials(study_id, deepcopy=False, states=(OptunaState.WAITING,))
    fates = {trial.number: "waits to be run" for trial in enqueued}
    fates |= {number: f"is {trial.state.value}" for number, trial in trials.items()}
    for number in numbers:
        if number not in trials or trials[number].state.is_final:
            rule = f"must be a trial of {name} that has begun and not ended"
            hint = f"`{command_at(location, ['tune-rescon', 'report', name])}` lists its trials."
            got = f"{number}, which {fates.get(number, 'it does not have')}"
            raise StorageError(format_error(rule, got=got, where="--trial", hint=hint))
    for number in numbers:
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        try:
            storage.set_trial_user_attr(trial_id, STOP_REQUESTED, True)
        except UpdateFinishedTrialError:
            continue  # It has ended since it was read.


def _check_reachable(location: SearchLocation) -> None:
    if isinstance(location.storage, StorageUrl) and location.study_url is None:
        rule = "the study must be in a database that this machine reaches"
        hint = "A storage at a URL has the driver's copy of the study, unless --study names a database."
        raise StorageError(format_error(rule, got=str(location.storage), where="--storage", hint=hint))


def _open(location: SearchLocation, name: str) -> RDBStorage:
    folder = find_search(location, name, where="NAME")
    return open_database(location.study_of(folder), busy_seconds=_BUSY_SECONDS)
