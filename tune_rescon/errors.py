"""The exceptions of this package, and the one way their messages are put.

::

    TuneResconError
    ├── UserError            bad usage, space or data: exit 2, one paragraph, no traceback
    │   ├── ConfigError      a TrialConfig or DatasetConfig that breaks a rule
    │   ├── SpaceError       a search-space file that breaks a rule
    │   ├── NetworkError     a preset, layout, depth or image size no network has
    │   ├── DataError        images that are missing, unreadable or too few
    │   ├── StorageError     a storage that cannot be written, a name that is taken or missing
    │   ├── ClusterFileError a cluster's file that is missing or no cluster's
    │   ├── LeaseError       another driver has the search
    │   └── ResourceError    more per trial than the machine or cluster has
    ├── ClusterError         a cluster did not do what it was told: exit 1
    └── SearchError          the search itself failed: exit 1
        ├── LeaseLostError   another driver has taken it over
        └── RecordError      its record cannot be written: a full disk, a file that is gone
            └── RecordBusyError  a write to it does not end

A user's mistake raises one of these; ``assert`` marks what cannot happen. A message states the rule,
then what came, then where, then what to do: see :func:`format_error`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

from tune_rescon.passwords import hide_passwords

__all__ = [
    "ClusterError",
    "ClusterFileError",
    "ConfigError",
    "DataError",
    "LeaseError",
    "LeaseLostError",
    "NetworkError",
    "RecordBusyError",
    "RecordError",
    "ResourceError",
    "SearchError",
    "SpaceError",
    "StorageError",
    "TuneResconError",
    "UserError",
    "format_error",
    "presentable",
    "unknown_name_message",
]

#: The end of an object's default repr, of which libraries' messages are full: a number that nobody can use.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class TuneResconError(Exception):
    """Root of every exception this package raises on purpose."""


class UserError(TuneResconError):
    """Something the user gave is wrong. Commands print it as one paragraph and exit 2."""


class ConfigError(UserError):
    """A trial or dataset configuration breaks a rule."""


class SpaceError(UserError):
    """A search-space file breaks a rule."""


class NetworkError(UserError):
    """No such network: unknown preset, impossible depth, image too small for the layout."""


class DataError(UserError):
    """A dataset is missing, unreadable, or not what its layout promises."""


class StorageError(UserError):
    """The storage cannot be written, or a search's name is taken or unknown."""


class ClusterFileError(UserError):
    """A cluster's file is missing, or describes no cluster of Ray's."""


class LeaseError(UserError):
    """A second driver on a search that has one."""


class ResourceError(UserError):
    """A trial asks for more than the machine or cluster has."""


class ClusterError(TuneResconError):
    """A cluster did not start, answer or take what it was given. Commands exit 1."""


class SearchError(TuneResconError):
    """The search could not be carried through. Commands exit 1."""


class LeaseLostError(SearchError):
    """Another driver has taken the search over: this one may write nothing any more."""


class RecordError(SearchError):
    """The record cannot be written any more: the disk is full, or the database is gone."""


class RecordBusyError(RecordError):
    """A write to the record does not end, and nothing can be written beside it."""


def format_error(rule: str, *, got: object = None, where: str = "", hint: str = "") -> str:
    """Put an error in this package's words: where, the rule, what came, what to do, as :func:`presentable`.

    >>> format_error("`low <= high` must hold", got="low=1.0, high=0.1", where="parameters.learning_rate")
    'parameters.learning_rate: `low <= high` must hold, but got low=1.0, high=0.1.'
    """
    text = f"{where}: {rule}" if where else rule
    if got is not None:
        text += f", but got {got}"
    text += "."
    return presentable(f"{text} {hint}" if hint else text)


def presentable(text: str) -> str:
    """``text`` as a user may see it: no passwords in URLs, and no addresses of objects in memory.

    >>> presentable("<urllib3.connection.HTTPConnection object at 0x7fc1a0>: http://ann:s3cret@mlflow")
    '<urllib3.connection.HTTPConnection object>: http://ann:***@mlflow'
    """
    return _ADDRESS.sub("", hide_passwords(text))


def unknown_name_message(kind: str, name: object, known: Iterable[str], *, where: str = "") -> str:
    """Answer an unknown name with the names that exist, the likeliest first.

    >>> unknown_name_message("metric", "val_acc", ["train_loss", "val_accuracy"])
    "unknown metric 'val_acc' (did you mean 'val_accuracy'?); known: train_loss, val_accuracy."
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    text = f"unknown {kind} {name!r}{guess}; known: {', '.join(names)}."
    return presentable(f"{where}: {text}" if where else text)
