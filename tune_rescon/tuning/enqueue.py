"""Add a trial of chosen values to a search, which runs it among its next trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from tune_rescon.errors import SpaceError, StorageError, format_error
from tune_rescon.spaces import Space, chosen_values, to_optuna
from tune_rescon.storage import StorageUrl
from tune_rescon.tuning.database import find_study, open_database
from tune_rescon.tuning.reader import Place, read_search
from tune_rescon.tuning.search_storage import find_search
from tune_rescon.tuning.study import FIXED_PARAMS

__all__ = ["enqueue_trial"]

#: Seconds that this process waits for the driver's transaction on a SQLite file.
_BUSY_SECONDS: Final = 30.0


def enqueue_trial(place: Place, name: str, settings: Sequence[str]) -> tuple[int, Mapping[str, Any]]:
    """Enqueue a trial in the study of a search, whether the search runs or not.

    The search draws the parameters that are not given.

    Args:
        place: Where the searches are.
        name: The name of the search.
        settings: ``KEY=VALUE`` for each given parameter.

    Returns:
        The number of the trial, and the given values.

    Raises:
        SpaceError: A value is not one of the search's space, or no value is given.
        StorageError: The search does not exist, or its study is on its driver's machine.
    """
    if isinstance(place.storage, StorageUrl) and place.study_url is None:
        rule = "the study must be in a database that this machine reaches"
        hint = "A storage at a URL has the driver's copy of the study, unless --study names a database."
        raise StorageError(format_error(rule, got=str(place.storage), where="--storage", hint=hint))
    space: Space = read_search(place, name).space
    values = chosen_values(space, settings)
    if not values:
        hint = f"Give --set KEY=VALUE. The parameters are {', '.join(space.parameters)}."
        raise SpaceError(format_error("a trial must have a value", got="none", where="--set", hint=hint))
    folder = find_search(place.storage, name, cache_root=place.cache_root, where="NAME", files=[])
    storage = open_database(place.study_url or folder.study_url, busy_seconds=_BUSY_SECONDS)
    # As `Study.enqueue_trial` does, which returns no number.
    waiting = create_trial(state=OptunaState.WAITING, system_attrs={FIXED_PARAMS: to_optuna(values)})
    trial_id = storage.create_new_trial(find_study(storage, name), template_trial=waiting)
    return storage.get_trial(trial_id).number, values
