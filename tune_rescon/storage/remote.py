"""The few things a search asks of a storage at a URL, each of them whole or not at all.

What fsspec's file systems raise is an open set (botocore's errors are no ``OSError``), so it is caught at
this one boundary and comes out as :class:`RemoteError`: the storage did not do it now, and may later.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import StorageError, format_error, presentable

__all__ = [
    "RemoteError",
    "RemoteFolder",
    "StorageUrl",
    "local_file",
    "parse_storage",
]


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Schemes that name a directory of this machine: no mirror is needed there.
_LOCAL: Final = ("file", "local")


@dataclass(frozen=True, kw_only=True)
class StorageUrl:
    """A storage that is no directory, such as ``s3://bucket/prefix``.

    Nothing can be run in it: SQLite needs a real file. A search works in a scratch directory of its machine
    and keeps what matters at the URL.
    """

    url: str
    """Without a slash at its end."""

    def __str__(self) -> str:
        """The URL."""
        return self.url

    @property
    def scheme(self) -> str:
        """What comes before ``://``."""
        return self.url.partition("://")[0]

    def of(self, name: str) -> str:
        """The URL of something in it.

        >>> StorageUrl(url="s3://bucket/runs").of("a/space.yaml")
        's3://bucket/runs/a/space.yaml'
        """
        return f"{self.url}/{name}"


def parse_storage(text: str, *, where: str = "--storage") -> Path | StorageUrl:
    """What ``--storage`` names, or another flag that takes a place (``where``).

    A leading ``~/`` is the home directory, also where no shell has expanded it (``--storage=~/runs``).

    >>> parse_storage("s3://bucket/runs/")
    StorageUrl(url='s3://bucket/runs')
    >>> parse_storage("file:///mnt/shared") == parse_storage("/mnt/shared")
    True

    Raises:
        StorageError: a URL of several file systems (``simplecache::s3://...``), or one that names no place.
    """
    if "::" in text and "://" in text:
        rule = "must be a directory, or the URL of one file system"
        hint = "Leave out what stands before the last `::`."
        raise StorageError(format_error(rule, got=repr(text), where=where, hint=hint))
    if not _SCHEME.match(text):
        return _expanded(text, where)
    scheme, _, place = text.partition("://")
    if not place.strip("/"):
        rule = "must name a bucket or a directory after `://`"
        raise StorageError(format_error(rule, got=repr(text), where=where))
    return Path(place) if scheme in _LOCAL else StorageUrl(url=text.rstrip("/"))


def _expanded(text: str, where: str) -> Path:
    if text != "~" and not text.startswith("~/"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        rule = "must be a directory, and `~` needs a home directory"
        raise StorageError(
            format_error(rule, got=repr(text), where=where, hint="Give its whole path.")
        ) from None


#: Object stores: one PUT replaces a key in one step, and a key can be made only if it is not there. On other
#: file systems a file is written beside its place and renamed, and made with mode "x".
_OBJECT_STORES: Final = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a"})

#: What to install for a scheme whose file system fsspec does not bring along: the extra of this package.
_EXTRAS: Final = {
    "abfs": "azure",
    "abfss": "azure",
    "az": "azure",
    "gcs": "gcs",
    "gs": "gcs",
    "s3": "s3",
    "s3a": "s3",
}


class RemoteError(OSError):
    """The storage did not do what it was asked; it may when it is asked again."""


class RemoteFolder:
    """A folder at a URL. Names are relative to it, with ``/``; folders come and go with their files."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        """Wrap an fsspec file system; see :meth:`connect`."""
        self._url = url
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_object_store = url.partition("://")[0] in _OBJECT_STORES

    @classmethod
    def connect(cls, storage: StorageUrl, *, where: str = "--storage") -> RemoteFolder:
        """The storage's root; ``where`` is the flag that named it. No request is made yet.

        Raises:
            StorageError: fsspec knows no such scheme, or its package is not installed.
        """
        # Imported here: a search in a directory needs no fsspec.
        from fsspec.core import url_to_fs
        from fsspec.registry import available_protocols

        try:
            filesystem, root = url_to_fs(storage.url)
        except ValueError:
            known = sorted(set(available_protocols()) & (_OBJECT_STORES | {"hdfs", "sftp", "smb"}))
            rule = (
                f"must be a directory, or a URL that begins with one of {', '.join(f'{s}://' for s in known)}"
            )
            raise StorageError(format_error(rule, got=repr(storage.url), where=where)) from None
        except ImportError as error:
            extra = _EXTRAS.get(storage.scheme)
            hint = f'Install it: pip install "tune_rescon[{extra}]".' if extra else f"{error}."
            rule = f"{storage.scheme}:// needs a package that is not installed"
            raise StorageError(format_error(rule, where=where, hint=hint)) from None
        except Exception as error:
            # A URL only its file system can parse: a port that is no number, a host that is missing.
            rule = "must be a URL its file system understands"
            got = f"{storage.url} ({_first_line(error)})"
            raise StorageError(format_error(rule, got=got, where=where)) from None
        return cls(storage.url, filesystem, root)

    @property
    def url(self) -> str:
        """Its URL, without a slash at its end."""
        return self._url

    def folder(self, name: str) -> RemoteFolder:
        """A folder in it."""
        return RemoteFolder(f"{self._url}/{name}", self._fs, self._path(name))

    def read(self, name: str, *, start: int | None = None, end: int | None = None) -> bytes | None:
        """A file's bytes, or those from ``start`` up to ``end``; None if there is no such file."""
        with _asking(f"reading {self._url}/{name}"):
            try:
                return bytes(self._fs.cat_file(self._path(name), start=start, end=end))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file in one step."""
        with _asking(f"writing {self._url}/{name}"), self._replacing(name) as path:
            self._fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Make a file unless there is one of that name; whether it was this call that made it.

        Of several callers at once at most one is told so if the store can refuse an existing name (S3, GCS,
        Azure, every POSIX file system). One that cannot (it answers 501 to the condition) is written to
        and read back, which leaves a window of milliseconds. ``data`` must tell the callers apart.
        """
        path = self._path(name)
        with _asking(f"writing {self._url}/{name}"):
            with contextlib.suppress(FileExistsError):
                if self._create(path, data):
                    return True
            # Also refused is a PUT that arrived, lost its answer and was repeated.
            self._fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(path)) == data
            return False

    def upload(self, source: Path, name: str) -> None:
        """Make or replace a file by a local one in one step, and check that all of it arrived."""
        with _asking(f"writing {self._url}/{name}"), self._replacing(name) as path:
            size = source.stat().st_size
            self._fs.put_file(str(source), path)
            arrived = self._size(path)
            if arrived != size:
                raise OSError(errno.EIO, f"{arrived} of {size} bytes arrived")

    def download(self, name: str, target: Path) -> bool:
        """Replace a local file by one from here in one step; False if there is none here."""
        half = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        path = self._path(name)
        with _asking(f"reading {self._url}/{name}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                expected = self._size(path)
                self._fs.get_file(path, str(half))
                arrived = half.stat().st_size
                # Or it is all of a file that has replaced that one meanwhile.
                if arrived not in (expected, self._size(path)):
                    raise OSError(errno.EIO, f"{arrived} of {expected} bytes arrived")
                half.replace(target)
            except FileNotFoundError:
                return False
            finally:
                half.unlink(missing_ok=True)
        return True

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with _asking(f"deleting {self._url}/{name}"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def names(self, folder: str = "") -> list[str]:
        """The files in a folder and below it, sorted."""
        top = self._path(folder)
        with _asking(f"listing {self._url}/{folder}"):
            self._fs.invalidate_cache()
            found = [str(path) for path in self._fs.find(top)]
        # S3 lists by prefix and has files of zero bytes for folders.
        return sorted(self._name(path) for path in found if path.startswith(f"{top}/") and path != f"{top}/")

    def folders_with(self, name: str) -> list[str]:
        """The folders right below that hold a file of this name, sorted."""
        with _asking(f"listing {self._url}"):
            self._fs.invalidate_cache()
            found = [str(path) for path in self._fs.glob(f"{glob.escape(self._root)}/*/{name}")]
        return sorted(self._name(path).partition("/")[0] for path in found)

    def modified(self, name: str) -> float | None:
        """When a file was written, seconds since 1970 by the store's clock; None if it is not there."""
        with _asking(f"looking at {self._url}/{name}"):
            self._fs.invalidate_cache()
            try:
                return float(self._fs.modified(self._path(name)).timestamp())
            except FileNotFoundError:
                return None

    def _size(self, path: str) -> int:
        self._fs.invalidate_cache()
        return int(self._fs.info(path)["size"])

    def _create(self, path: str, data: bytes) -> bool:
        """Make a file; whether that is certain."""
        if not self._is_object_store:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._fs.open(path, "xb") as file:
                file.write(data)
            return True
        try:
            self._fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            if not self._fs.exists(path):
                self._fs.pipe_file(path, data)
            return False
        return True

    @contextlib.contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """The path to write to, so that ``name`` is there whole once the block is left."""
        path = self._path(name)
        if self._is_object_store:
            yield path
            return
        folder, _, last = path.rpartition("/")
        half = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            yield half
            self._fs.mv(half, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(half)
            raise

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        raise RemoteError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return presentable(str(error)).partition("\n")[0].strip(" .") or type(error).__name__


@contextmanager
def local_file(place: str) -> Iterator[Path]:
    """The file at a path or a URL; a copy of the latter, for the block.

    Raises:
        StorageError: it is not at its URL.
    """
    folder, _, name = place.rpartition("/")
    if "://" not in place:
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="tune_rescon-") as scratch:
        file = Path(scratch) / name
        if not RemoteFolder.connect(StorageUrl(url=folder)).download(name, file):
            raise StorageError(format_error("a trial's checkpoint must be in the storage", got=place))
        yield file
