"""A dataset's archive at a URL: fetched once to each node, however many trials want it."""

from __future__ import annotations

import functools
import os
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from filelock import FileLock

from tune_rescon.errors import DataError, format_error

__all__ = ["fetched", "is_url"]

#: What file systems call the version of a file, the more telling first.
_VERSIONS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "LastModified", "Last-Modified"),
    *("mtime", "last_modified"),
)


def is_url(path: str) -> bool:
    """Whether a dataset's path is a URL.

    >>> is_url("s3://bucket/photos.zip"), is_url("photos.zip")
    (True, False)
    """
    return "://" in path


#: Keys of a signed URL's query: CloudFront's, S3's and Google's earlier ones, Azure's, tokens.
_SIGNATURES: Final = frozenset(
    {
        *("expires", "signature", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
        *("sig", "se", "sp", "st", "sv", "sr", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv"),
        *("token", "access_token"),
    }
)


@functools.cache
def fetched(url: str, folder: Path) -> Path:
    """The archive at ``url``, in ``folder`` of this node; asked for its version once in a process.

    Another version is another file, so whoever reads the old one goes on.

    Raises:
        DataError: it is not there or cannot be read, or no file system goes by that scheme.
    """
    # Imported here: most datasets need no fsspec.
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
        facts = filesystem.info(path)
    except Exception as error:  # an open set: each file system has errors of its own
        raise _unreadable(url, error) from error
    # What follows a `?` is no part of a file's name on a web server; elsewhere it may be.
    name = PurePosixPath(urlsplit(path).path if is_url(path) else path)
    if facts.get("type") == "directory" or name.suffix.lower() != ".zip":
        rule = "a dataset.path that is a URL must be that of a .zip of images"
        raise DataError(format_error(rule, got=url, where="dataset.path"))
    target = folder / f"{name.stem}-{_version(url, facts)}{name.suffix}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{target.name}.lock"):
        if not target.exists():
            partial = folder / f".{target.name}.{os.getpid()}.partial"
            try:
                filesystem.get_file(path, str(partial))
                partial.replace(target)
            except Exception as error:
                partial.unlink(missing_ok=True)
                raise _unreadable(url, error) from error
    return target


def _version(url: str, facts: dict[str, Any]) -> str:
    told = next((str(facts[key]) for key in _VERSIONS if facts.get(key)), "")
    size = facts.get("size")
    # Signed anew, a URL is that of the same file, if the server tells anything by which a file is known.
    known = _unsigned(url) if told or size is not None else url
    return blake2b(f"{known}\0{size}\0{told}".encode(), digest_size=8).hexdigest()


def _unsigned(url: str) -> str:
    """A URL without the part of its query that says who may read it, and until when.

    >>> _unsigned("https://host/a.zip?id=3&X-Amz-Date=20260101&X-Amz-Signature=5e1f")
    'https://host/a.zip?id=3'
    """
    address, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not _is_signature(part.partition("=")[0].lower())]
    return f"{address}?{'&'.join(kept)}" if kept else address


def _is_signature(key: str) -> bool:
    return key in _SIGNATURES or key.startswith(("x-amz-", "x-goog-"))


def _unreadable(url: str, error: Exception) -> DataError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = (
        "Every node must reach it, with the credentials found there (the machine's role, as usual for s3://);"
        " `pip install 'tune_rescon[s3]'` brings that file system, likewise gcs and azure."
    )
    rule = "dataset.path must be an archive that can be read"
    return DataError(format_error(rule, got=f"{url} ({said})", where="dataset.path", hint=hint))
