"""A dataset's archive at a URL: fetched once to each node, however many trials want it."""

from __future__ import annotations

import functools
import os
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Final

from filelock import FileLock

from tune_rescon.errors import DataError, explain

__all__ = ["fetched", "is_url"]

#: What file systems call the version of a file, the more telling first.
_VERSIONS: Final = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "mtime", "last_modified")


def is_url(path: str) -> bool:
    """Whether a dataset's path is a URL.

    >>> is_url("s3://bucket/photos.zip"), is_url("photos.zip")
    (True, False)
    """
    return "://" in path


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
    if facts.get("type") == "directory" or PurePosixPath(path).suffix.lower() != ".zip":
        rule = "a dataset.path that is a URL must be that of a .zip of images"
        raise DataError(explain(rule, got=url, where="dataset.path"))
    name = PurePosixPath(path)
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
    return blake2b(f"{url}\0{facts.get('size')}\0{told}".encode(), digest_size=8).hexdigest()


def _unreadable(url: str, error: Exception) -> DataError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = (
        "Every node must reach it, with the credentials found there (the machine's role, as usual for s3://);"
        " `pip install 'tune_rescon[s3]'` brings that file system, likewise gcs and azure."
    )
    rule = "dataset.path must be an archive that can be read"
    return DataError(explain(rule, got=f"{url} ({said})", where="dataset.path", hint=hint))
