"""The exceptions of this package, the form of their messages, and the passwords that no message shows.

::

    TuneResconError
    ├── UserError            bad usage, space or data: exit 2, one paragraph, no traceback
    │   ├── ConfigError      a TrialConfig or DatasetConfig that breaks a rule
    │   ├── SpaceError       a search-space file that breaks a rule
    │   ├── NetworkError     a preset, layout, depth or image size that no network has
    │   ├── DataError        images that are missing, unreadable or too few
    │   │   └── OtherImagesError a machine has other images than the search
    │   ├── StorageError     a storage that cannot be written, a name that is taken or missing
    │   │   └── NameTakenError   the name of a new search is taken
    │   ├── ClusterFileError a cluster file that is missing or does not describe a cluster
    │   ├── LeaseError       another driver runs the search
    │   └── ResourceError    a trial needs more than the machine or cluster has
    ├── ClusterError         a cluster did not start, did not answer or refused its input: exit 1
    └── SearchError          the search itself failed: exit 1
        ├── LeaseLostError   another driver has taken over the search
        └── RecordError      the search's record cannot be written: a full disk, a missing file
            └── RecordBusyError  a write to the record does not end

A user's mistake raises one of these exceptions; ``assert`` marks what cannot happen. A message states where
the error is, the rule, the value that broke it, and what to do: see :func:`format_error`.

The URL of a tracking server or of a study's database may contain a password, and libraries quote such URLs in
their error messages. Therefore every text that is printed, logged, recorded or sent elsewhere passes
:func:`hide_passwords`, which also finds a malformed URL.
"""

from __future__ import annotations

import difflib
import logging
import re
import shlex
from collections.abc import Iterable
from typing import Final

from typing_extensions import override

__all__ = [
    "ClusterError",
    "ClusterFileError",
    "ConfigError",
    "DataError",
    "HidingFormatter",
    "KeyPath",
    "LeaseError",
    "LeaseLostError",
    "NameTakenError",
    "NetworkError",
    "OtherImagesError",
    "RecordBusyError",
    "RecordError",
    "ResourceError",
    "SearchError",
    "SpaceError",
    "StorageError",
    "TuneResconError",
    "UserError",
    "counted",
    "dotted",
    "first_line",
    "format_error",
    "has_password",
    "hide_passwords",
    "presentable",
    "shell_command",
    "unknown_name_message",
    "without_password",
]


#: The address in an object's default repr, which is of no use in a message.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


class TuneResconError(Exception):
    """Base class of every exception that this package raises on purpose."""


class UserError(TuneResconError):
    """The user's input is wrong. Commands print the message as one paragraph and exit with 2."""


class ConfigError(UserError):
    """A trial or dataset configuration breaks a rule."""


class SpaceError(UserError):
    """A search-space file breaks a rule."""


class NetworkError(UserError):
    """No such network: an unknown preset, an impossible depth, or an image too small for the layout."""


class DataError(UserError):
    """A dataset is missing, unreadable, or different from what its layout requires."""


class OtherImagesError(DataError):
    """A machine, or a process that starts late, finds other images than those of the search."""


class StorageError(UserError):
    """The storage cannot be written, or a search's name is taken or unknown."""


class NameTakenError(StorageError):
    """A new search cannot have the name, because a search or another file in the storage has it."""


class ClusterFileError(UserError):
    """A cluster file is missing, or does not describe a Ray cluster."""


class LeaseError(UserError):
    """Another driver already runs the search."""


class ResourceError(UserError):
    """A trial needs more than the machine or cluster has."""


class ClusterError(TuneResconError):
    """A cluster did not start, did not answer or did not accept its input. Commands exit with 1."""


class SearchError(TuneResconError):
    """The search failed. Commands exit with 1."""


class LeaseLostError(SearchError):
    """Another driver has taken over the search, so this driver may not write any more."""


class RecordError(SearchError):
    """The record of the search cannot be written any more: the disk is full, or the database is missing."""


class RecordBusyError(RecordError):
    """A write to the record does not end, and it blocks every other write."""


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    >>> counted(1, "trial"), counted(12, "trial"), counted(2, "class", "classes"), counted(1.0, "hour")
    ('1 trial', '12 trials', '2 classes', '1 hour')
    """
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun if number == 1 else plural or noun + 's'}"


#: Keys and list positions from the top of a file: ``("parameters", "depth", "choices", 1)``.
KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """Format a path in the usual notation.

    >>> dotted(("parameters", "depth", "choices", 1))
    'parameters.depth.choices[1]'
    """
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def format_error(rule: str, *, got: object = None, where: str = "", hint: str = "") -> str:
    """Return an error message: where, the rule, the value and a hint, made :func:`presentable`.

    Args:
        rule: the rule that was broken.
        got: the value that broke the rule; None: not shown.
        where: the field, flag or file that has the value.
        hint: what the user can do.

    >>> format_error("`low <= high` must hold", got="low=1.0, high=0.1", where="parameters.learning_rate")
    'parameters.learning_rate: `low <= high` must hold, but got low=1.0, high=0.1.'
    """
    text = f"{where}: {rule}" if where else rule
    if got is not None:
        text += f", but got {got}"
    text += "."
    return presentable(f"{text} {hint}" if hint else text)


def presentable(text: str) -> str:
    """Return ``text`` without passwords in URLs and without memory addresses of objects, to show to the user.

    >>> presentable("<urllib3.connection.HTTPConnection object at 0x7fc1a0>: http://ann:s3cret@mlflow")
    '<urllib3.connection.HTTPConnection object>: http://ann:***@mlflow'
    """
    return _ADDRESS.sub("", hide_passwords(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, to show to the user; its type if it has no message.

    >>> first_line(OSError("cannot reach http://ann:s3cret@host.\\nDetails follow."))
    'cannot reach http://ann:***@host'
    >>> first_line(KeyError())
    'KeyError'
    """
    return presentable(str(error)).strip().partition("\n")[0].strip(" .") or type(error).__name__


def unknown_name_message(kind: str, name: object, known: Iterable[str], *, where: str = "") -> str:
    """Return the error message for an unknown name: the likeliest known name, then all known names.

    Args:
        kind: the kind of name, such as "metric".
        name: the unknown name.
        known: the names that exist.
        where: the field, flag or file that has the name.

    >>> unknown_name_message("metric", "val_acc", ["val_auroc", "val_accuracy"])
    "unknown metric 'val_acc' (did you mean 'val_accuracy'?); known: val_accuracy, val_auroc."
    """
    names = sorted(known)
    # An abbreviation of one name is likelier than a misspelling of another.
    close = [each for each in names if name and each.startswith(str(name))]
    if len(close) != 1:
        close = difflib.get_close_matches(str(name), names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    text = f"unknown {kind} {name!r}{guess}; known: {', '.join(names)}."
    return presentable(f"{where}: {text}" if where else text)


#: ``SCHEME://USER:PASSWORD@``. A password may contain any character except a space, including ``@`` and
#: ``/`` that should have been quoted. After ``http://HOST:PORT/`` an ``@`` is part of a path.
_USER: Final = re.compile(
    r"(?P<before>(?i:https?)://[^\s:@/?#\"'`]*:(?!\d{1,5}(?:[/?#\s]|$))"
    r"|\b(?!(?i:https?):)[A-Za-z][A-Za-z0-9+.-]*://[^\s:@/?#\"'`]*:)"
    r"(?P<password>[^\s]*)@"
)

#: ``?password=...``, as database drivers accept it, and the signatures of presigned URLs.
_QUERY: Final = re.compile(
    r"(?P<before>[?&](?:password|passwd|pwd|sslpassword|passfile|token|access_token|secret|api_?key"
    r"|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)"
    r"|signature|sig|awsaccesskeyid|googleaccessid|key-pair-id|policy)=)"
    r"(?P<password>[^&\s\"'`)]+)",
    re.IGNORECASE,
)

#: ``https://TOKEN@``. In the URL of a database, a user without a password is only a name.
_TOKEN: Final = re.compile(r"(?P<before>\bhttps?://)(?P<password>[^\s:@/?#\"'`]+)@", re.IGNORECASE)

#: ``PWD=...;`` in the connection string of an ODBC driver, also quoted, as in ``?odbc_connect=``. Braces may
#: enclose it.
_ODBC: Final = re.compile(
    r"(?P<before>(?:(?<=[;?&=\"'])|(?<=%3B)|(?<=%3D))(?:\s|\+|%20)*(?:pwd|password)(?:\s|\+|%20)*(?:=|%3D))"
    r"(?P<password>\{(?:[^}]|\}\})*\}|%7B(?:(?!%7D).|%7D%7D)*%7D|(?:(?!%3B)[^;&\s\"'`])+)"
    r"(?P<end>;|%3B|)",
    re.IGNORECASE,
)

_SHOWN: Final = "***"


def hide_passwords(text: str) -> str:
    """Return ``text`` with each password in a URL replaced by ``***``.

    >>> hide_passwords("no answer from http://ann:s3cret@mlflow:5000/api")
    'no answer from http://ann:***@mlflow:5000/api'
    >>> hide_passwords("postgresql+psycopg://ann:s3/cr@t@db/studies?sslmode=require")
    'postgresql+psycopg://ann:***@db/studies?sslmode=require'
    >>> hide_passwords("http://localhost:5000/models/a@champion")
    'http://localhost:5000/models/a@champion'
    >>> hide_passwords("https://host/a.zip?X-Amz-Date=20260101&X-Amz-Signature=5e1f")
    'https://host/a.zip?X-Amz-Date=20260101&X-Amz-Signature=***'
    >>> hide_passwords("https://dapi5e1f@host/api")
    'https://***@host/api'
    >>> hide_passwords("mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3Ds3cret%3BEncrypt%3Dyes")
    'mssql+pyodbc:///?odbc_connect=UID%3Dann%3BPWD%3D***%3BEncrypt%3Dyes'
    """
    for pattern in (_USER, _TOKEN):
        text = pattern.sub(rf"\g<before>{_SHOWN}@", text)
    return _ODBC.sub(rf"\g<before>{_SHOWN}\g<end>", _QUERY.sub(rf"\g<before>{_SHOWN}", text))


class HidingFormatter(logging.Formatter):
    """Hide the passwords of log records, also in their tracebacks."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


def has_password(url: str) -> bool:
    """Return whether a URL contains a password that is not hidden."""
    return hide_passwords(url) != url


def shell_command(words: Iterable[str], flags: Iterable[tuple[str, str | None, str | None]]) -> str:
    """Return a command as a user types it.

    A value that is a URL with a password is replaced by the environment variable that may hold it.

    Args:
        words: the command's first words.
        flags: each a flag, its value, and the environment variable that may hold a URL, or None. A flag whose
            value is None is left out.

    >>> shell_command(["report", "s"], [("--study", "postgresql://ann:s3cret@db/x", "STUDY")])
    'report s --study "$STUDY"'
    """
    line = shlex.join(words)
    for flag, value, variable in flags:
        if value is not None:
            is_secret = variable is not None and has_password(value)
            line += f' {flag} "${variable}"' if is_secret else f" {shlex.join([flag, value])}"
    return line


def without_password(url: str) -> str:
    """Return ``url`` without its password, as it may be recorded.

    Drivers and clients add the password from an environment variable or a file. The user is removed from an
    HTTP URL too, because a client that finds a user in the URL does not look elsewhere for the password.

    >>> without_password("http://ann:s3cret@mlflow:5000")
    'http://mlflow:5000'
    >>> without_password("postgresql://ann:s3cret@db/mlflow?password=s3cret&sslmode=require")
    'postgresql://ann@db/mlflow?sslmode=require'
    """
    address, _, query = _TOKEN.sub(r"\g<before>", _USER.sub(_without_user, url)).partition("?")
    kept = [_ODBC.sub("", part) for part in query.split("&") if part and not _QUERY.match(f"?{part}")]
    return f"{address}?{'&'.join(kept)}" if kept else address


def _without_user(match: re.Match[str]) -> str:
    before = match["before"]
    if before.lower().startswith("http"):
        return before.partition("://")[0] + "://"
    return before.removesuffix(":") + "@"
