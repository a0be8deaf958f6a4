"""Passwords in URLs: what is printed, logged, recorded or sent elsewhere shows none.

The URL of a tracking server or of a study's database may contain its password. Libraries quote such URLs in
their error messages, so whole texts are searched, and a URL is found even if it is malformed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final

__all__ = ["has_password", "hide_passwords", "shell_command", "without_password"]

#: ``SCHEME://USER:PASSWORD@``. A password may hold any character but a space: also ``@`` and ``/`` that
#: should have been quoted. After ``http://HOST:PORT/`` an ``@`` is part of a path.
_USER: Final = re.compile(
    r"(?P<before>(?i:https?)://[^\s:@/?#\"'`]*:(?!\d{1,5}(?:[/?#\s]|$))"
    r"|\b(?!(?i:https?):)[A-Za-z][A-Za-z0-9+.-]*://[^\s:@/?#\"'`]*:)"
    r"(?P<password>[^\s]*)@"
)

#: ``?password=...``, as database drivers take it, and the signatures of presigned URLs.
_QUERY: Final = re.compile(
    r"(?P<before>[?&](?:password|passwd|pwd|sslpassword|passfile|token|access_token|secret|api_?key"
    r"|x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)"
    r"|signature|sig|awsaccesskeyid|googleaccessid|key-pair-id|policy)=)"
    r"(?P<password>[^&\s\"'`)]+)",
    re.IGNORECASE,
)

_SHOWN: Final = "***"


def hide_passwords(text: str) -> str:
    """``text`` with ``***`` for each password in a URL.

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


def has_password(url: str) -> bool:
    """Whether a URL holds a password that is not hidden."""
    return hide_passwords(url) != url


def shell_command(words: Iterable[str], flags: Iterable[tuple[str, str | None, str | None]]) -> str:
    """A command as a person types it. A URL that holds a password is not in it: its variable is.

    Args:
        words: the command's first words.
        flags: flag, value and, for a URL, the environment variable that may hold it; no value: not given.

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
    """``url`` as it may be recorded: drivers and clients add the password from a variable or file of theirs.

    Of an HTTP URL the user goes too: a client that finds one there looks for no password elsewhere.

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
