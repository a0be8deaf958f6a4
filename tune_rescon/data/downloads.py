"""Fetch a dataset's archive from a URL once per node, independent of the number of trials that need it."""

from __future__ import annotations

import functools
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from filelock import FileLock

from tune_rescon.atomic_write import atomic_write
from tune_rescon.errors import DataError, format_error

__all__ = ["fetched", "is_url"]

#: Keys under which file systems report the version of a file, the most specific first.
_VERSIONS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "LastModified", "Last-Modified"),
    *("mtime", "last_modified"),
)


def is_url(path: str) -> bool:
    """Return whether a dataset's path is a URL.

    >>> is_url("s3://bucket/photos.zip"), is_url("photos.zip")
    (True, False)
    """
    return "://" in path


#: Keys in the query of a signed URL: CloudFront's, the earlier ones of S3 and Google, Azure's, and tokens.
_SIGNATURES: Final = frozenset(
    {
        *("expires", "signature", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
        *("sig", "se", "sp", "st", "sv", "sr", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv"),
        *("token", "access_token"),
    }
)


@functools.cache
def fetched(url: str, folder: Path) -> Path:
    """Fetch the archive at ``url`` into ``folder`` of this node and return its path.

    The version at the URL is requested once per process. Each version is a separate file, so that a process
    that reads an old version can continue.

    Raises:
        DataError: The archive does not exist or cannot be read, or no file system supports the URL's scheme.
    """
    # Imported here because most datasets do not need fsspec.
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
        info = filesystem.info(path)
    except Exception as error:  # each file system has its own exceptions, so the set is open
        raise _unreadable(url, error) from error
    # On a web server, the text after a `?` is not part of a file's name. Elsewhere it may be.
    name = PurePosixPath(urlsplit(path).path if is_url(path) else path)
    if info.get("type") == "directory" or name.suffix.lower() != ".zip":
        rule = "a dataset.path that is a URL must be that of a .zip of images"
        raise DataError(format_error(rule, got=url, where="dataset.path"))
    target = folder / f"{name.stem}-{_version(url, info)}{name.suffix}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{target.name}.lock"):
        if not target.exists():
            try:
                with atomic_write(target) as scratch:
                    filesystem.get_file(path, str(scratch))
            except Exception as error:
                raise _unreadable(url, error) from error
    return target


def _version(url: str, datasets: dict[str, Any]) -> str:
    version = next((str(datasets[key]) for key in _VERSIONS if datasets.get(key)), "")
    size = datasets.get("size")
    # A URL with a new signature is the same file. The signature is ignored only if the server reports a
    # version or a size by which the file can be identified.
    known = _unsigned(url) if version or size is not None else url
    return blake2b(f"{known}\0{size}\0{version}".encode(), digest_size=8).hexdigest()


def _unsigned(url: str) -> str:
    """Return the URL without the part of its query that grants access and limits its duration.

    >>> _unsigned("https://host/a.zip?id=3&X-Amz-Date=20260101&X-Amz-Signature=5e1f")
    'https://host/a.zip?id=3'
    """
    address, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not _is_signature(part.partition("=")[0].lower())]
    return f"{address}?{'&'.join(kept)}" if kept else address


def _is_signature(key: str) -> bool:
    return key in _SIGNATURES or key.startswith(("x-amz-", "x-goog-"))


def _unreadable(url: str, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = (
        "Every node must reach it, with the credentials found there (the machine's role, as usual for s3://);"
        " `pip install 'tune_rescon[s3]'` brings that file system, likewise gcs and azure."
    )
    rule = "dataset.path must be an archive that can be read"
    return DataError(format_error(rule, got=f"{url} ({reason})", where="dataset.path", hint=hint))
