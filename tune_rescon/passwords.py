"""Hide the passwords of URLs in all text that is printed, logged, recorded or sent elsewhere.

The URL of a tracking server or of a study's database may contain a password. Libraries quote such URLs in
their error messages. Therefore the whole text is searched, and a URL is found even if it is malformed.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterable
from typing import Final

from typing_extensions import override

__all__ = ["HidingFormatter", "has_password", "hide_passwords", "shell_command", "without_password"]

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
    """
    return _QUERY.sub(rf"\g<before>{_SHOWN}", _USER.sub(rf"\g<before>{_SHOWN}@", text))


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
        flags: tuples of a flag, its value and, for a URL, the environment variable that may hold the URL. A
            flag whose value is None is left out.

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
    address, _, query = _USER.sub(_without_user, url).partition("?")
    kept = [part for part in query.split("&") if part and not _QUERY.match(f"?{part}")]
    return f"{address}?{'&'.join(kept)}" if kept else address


def _without_user(found: re.Match[str]) -> str:
    before = found["before"]
    if before.lower().startswith("http"):
        return before.partition("://")[0] + "://"
    return before.removesuffix(":") + "@"
