"""The digests of a search's inputs beside its space: the images, the initial weights and the user's code.

The record stores them, so that a resume, a warm start or a comparison detects a change. A record of an
earlier version of this package may lack some of them; these are not checked.

The user's code is the functions of ``metric.log`` and ``network: MODULE:FUNCTION``. The digest of a function
covers the file that defines it, but not the files that it imports.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tune_rescon.data import DatasetInfo
from tune_rescon.errors import DataError, StorageError, format_error
from tune_rescon.spaces import Space
from tune_rescon.tuning.prepare import PreparedData, external_trials, metric_functions
from tune_rescon.tuning.study import StudyRecord
from tune_rescon.user_code import import_function, split_function

if TYPE_CHECKING:
    from tune_rescon.training.initial_weights import InitialWeights

__all__ = [
    "changed_digests",
    "check_same_images",
    "check_same_weights",
    "code_digests",
    "code_history",
    "function_digest",
    "record_code",
    "record_images",
    "record_weights",
    "recorded_code",
    "recorded_images",
    "recorded_weights",
    "weight_digests",
]


#: The study's attributes with the digest of each dataset's images and splits, by the dataset's name, and of
#: each file of initial weights, by its path or URL.
_IMAGES: Final = "image_digests"
_WEIGHTS: Final = "weight_digests"

#: The study's attribute with the versions of the user's code, oldest first. ``trials`` is the number of
#: recorded trials when the version was found.
_CODE: Final = "code_versions"

_PROGRESS = logging.getLogger("tune_rescon.progress")


def check_same_images(record: StudyRecord, data: PreparedData) -> None:
    """Check that a resumed search has the same images and splits as its trials. Their location may differ.

    Raises:
        DataError: If a dataset differs.
    """
    if changed := changed_digests(recorded_images(record), data.digests):
        name, known = changed[0], record.attribute("datasets") or {}
        rule = "a resumed search must have the images that its trials were trained and validated on"
        got = f"other images in {name} ({_counts(known.get(name), data.infos[name])})"
        hint = (
            "Put back the images, or begin a search of another --name with --warm-start and this one's"
            " name, which learns from its trials."
        )
        raise DataError(format_error(rule, got=got, where="dataset", hint=hint))


def _counts(known: Mapping[str, Any] | None, info: DatasetInfo) -> str:
    """Describe how the numbers of images differ, if they do."""
    parts = ("train", "val", "test")
    now = {part: getattr(info, f"{part}_images") for part in parts}
    then = {part: (known or {}).get(f"{part}_images") for part in parts}
    changed = [f"{part} {then[part]} then, {now[part]} now" for part in parts if then[part] != now[part]]
    return "; ".join(changed) if known and changed else "as many as before, but not the same"


def record_images(record: StudyRecord, digests: Mapping[str, str]) -> None:
    """Record the digest of each dataset's images and splits."""
    record.set_attribute(_IMAGES, {**recorded_images(record), **digests})


def recorded_images(record: StudyRecord) -> Mapping[str, str]:
    """Return the recorded digest of each dataset's images and splits, by the dataset's name."""
    return record.attribute(_IMAGES) or {}


def check_same_weights(record: StudyRecord, weights: Mapping[str, InitialWeights]) -> None:
    """Check that the files of initial weights hold what the trials of a resumed search began with.

    Args:
        record: The record of the search.
        weights: The initial weights now, by path or URL.

    Raises:
        StorageError: If a file holds other weights.
    """
    if changed := changed_digests(recorded_weights(record), weight_digests(weights)):
        rule = "a resumed search must have the initial weights that its trials began with"
        hint = (
            "Put the file back, or begin a search of another --name. To compare both files, give the new one"
            " another name, and search init_from."
        )
        got = f"other weights in {changed[0]}"
        raise StorageError(format_error(rule, got=got, where="init_from", hint=hint))


def weight_digests(weights: Mapping[str, InitialWeights]) -> dict[str, str]:
    """Return the digest of each file of initial weights, by its path or URL."""
    return {source: found.digest for source, found in weights.items()}


def record_weights(record: StudyRecord, weights: Mapping[str, InitialWeights]) -> None:
    """Record the digest of each file of initial weights."""
    if weights:
        record.set_attribute(_WEIGHTS, {**recorded_weights(record), **weight_digests(weights)})


def recorded_weights(record: StudyRecord) -> Mapping[str, str]:
    """Return the recorded digest of each file of initial weights, by its path or URL."""
    return record.attribute(_WEIGHTS) or {}


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
    digests = {name: function_digest(name) for name in functions}
    return {name: digest for name, digest in digests.items() if digest is not None}


def function_digest(name: str) -> str | None:
    """Return the digest of the file that defines a user's function, or else of the file of its module.

    Returns None without a Python file that can be read.

    Raises:
        ConfigError: If the function cannot be imported.
    """
    function = import_function(name, what="a user's function", where=name)
    file = _source_file(function) or _source_file(sys.modules[name.partition(":")[0]])
    try:
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return None


def _source_file(item: Any) -> str | None:
    try:
        return inspect.getsourcefile(inspect.unwrap(item))
    except TypeError:  # built in, or an object that can be called
        return None


def record_code(record: StudyRecord, digests: Mapping[str, str], *, before_trials: bool) -> None:
    """Record the digests of the user's code, and warn if the code of a function has changed.

    Args:
        record: The record of the search.
        digests: The result of :func:`code_digests` now.
        before_trials: True before the trials of this run, False after them.
    """
    versions = record.attribute(_CODE) or []
    known = recorded_code(record)
    changed = changed_digests(known, digests)
    if changed or not digests.keys() <= known.keys():
        version = {"trials": len(record), "before": before_trials, "digests": {**known, **digests}}
        record.set_attribute(_CODE, [*versions, version])
    if changed and (not before_trials or len(record)):
        when = "since its last run" if before_trials else "while the trials ran"
        _PROGRESS.warning(
            f"The code of {', '.join(changed)} has changed {when}. Trials before and after the change are"
            " still compared. If their values mean different things, begin a search of another --name."
        )


def recorded_code(record: StudyRecord) -> Mapping[str, str]:
    """Return the newest recorded digests, by ``module:function``."""
    versions = record.attribute(_CODE)
    return versions[-1]["digests"] if versions else {}


def changed_digests(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names in both ``before`` and ``now`` whose digests differ."""
    return [name for name, digest in now.items() if before.get(name, digest) != digest]


def code_history(record: StudyRecord) -> tuple[str, ...]:
    """Return the recorded changes of the user's code, one line for each."""
    versions: Sequence[Mapping[str, Any]] = record.attribute(_CODE) or []
    lines = []
    for old, new in itertools.pairwise(versions):
        changed = changed_digests(old["digests"], new["digests"])
        if changed and new["trials"]:
            when = "before" if new["before"] else "while the trials ran, before"
            lines.append(f"the code of {', '.join(changed)} changed {when} trial {new['trials']}")
    return tuple(lines)
