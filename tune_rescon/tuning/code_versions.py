"""The versions of the user's code: the functions of ``metric.log`` and ``network: MODULE:FUNCTION``.

A search records the digest of each file that defines such a function, so that a resume, a warm start or a
comparison can tell that the file has changed since. What the file imports is not followed.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tune_rescon.spaces import Space
from tune_rescon.tuning.prepare import external_trials, metric_functions
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.user_code import import_function, split_function

__all__ = ["changed_functions", "code_digests", "code_history", "record_code", "recorded_code"]


#: The study's attribute with the versions, oldest first. ``trials`` is the number of trials that the record
#: had when the version was found.
_ATTRIBUTE: Final = "code_versions"

_PROGRESS = logging.getLogger("tune_rescon.progress")


def code_digests(space: Space) -> dict[str, str]:
    """Return the digest of the file of each of the user's functions in ``space``, by ``module:function``.

    A function has no digest if no Python file defines it, or the file cannot be read.

    Raises:
        ConfigError: If a function cannot be imported.
    """
    networks = [config.network for config in external_trials(space) if config.network is not None]
    functions = dict.fromkeys(
        [*metric_functions(space), *(name for name in networks if split_function(name))]
    )
    digests = {name: _digest(_defining_file(name)) for name in functions}
    return {name: digest for name, digest in digests.items() if digest is not None}


def record_code(record: StudyRecord, digests: Mapping[str, str], *, before_trials: bool) -> None:
    """Record the user's code, and warn if the code of a function is not what the last version has.

    Args:
        record: The record of the search.
        digests: The result of :func:`code_digests` now.
        before_trials: Whether the trials of this run have yet to begin. If not, they have ended.
    """
    versions = record.attribute(_ATTRIBUTE) or []
    known = recorded_code(record)
    changed = changed_functions(known, digests)
    if changed or not digests.keys() <= known.keys():
        version = {"trials": len(record), "before": before_trials, "digests": {**known, **digests}}
        record.set_attribute(_ATTRIBUTE, [*versions, version])
    if changed and (not before_trials or len(record)):
        when = "since its last run" if before_trials else "while the trials ran"
        _PROGRESS.warning(
            f"The code of {', '.join(changed)} has changed {when}. Trials before and after the change are"
            " compared all the same. If their values mean different things, begin a search of another --name."
        )


def recorded_code(record: StudyRecord) -> Mapping[str, str]:
    """Return the newest recorded digests, by ``module:function``."""
    versions = record.attribute(_ATTRIBUTE)
    return versions[-1]["digests"] if versions else {}


def changed_functions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the functions that both have, with different code."""
    return [name for name, digest in now.items() if before.get(name, digest) != digest]


def code_history(record: StudyRecord) -> tuple[str, ...]:
    """Return the recorded changes of the user's code, one line for each."""
    versions: Sequence[Mapping[str, Any]] = record.attribute(_ATTRIBUTE) or []
    lines = []
    for old, new in itertools.pairwise(versions):
        changed = changed_functions(old["digests"], new["digests"])
        if changed and new["trials"]:
            when = "before" if new["before"] else "while the trials ran, before"
            lines.append(f"the code of {', '.join(changed)} changed {when} trial {new['trials']}")
    return tuple(lines)


def _defining_file(name: str) -> Path | None:
    """Return the file that defines a user's function, or else the file of the module that is named."""
    function = import_function(name, what="a user's function", where=name)
    return _source_file(function) or _source_file(sys.modules[name.partition(":")[0]])


def _source_file(item: Any) -> Path | None:
    try:
        source = inspect.getsourcefile(inspect.unwrap(item))
    except TypeError:  # built in, or an object that can be called
        return None
    return None if source is None else Path(source)


def _digest(file: Path | None) -> str | None:
    try:
        return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
