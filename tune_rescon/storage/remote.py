"""The operations on a storage at a URL. Each one succeeds completely or has no effect.

fsspec's file systems raise many kinds of exceptions (botocore's errors are no ``OSError``). All of them are
caught here and raised as :class:`RemoteError`: the operation failed now, and a later try may succeed.
"""

from __future__ import annotations

import errno
import glob
import json
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.atomic_write import atomic_write
from tune_rescon.errors import StorageError, first_line, format_error

__all__ = ["RemoteError", "RemoteFolder", "SharedValue", "StorageUrl", "local_file", "parse_storage"]


_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

#: Schemes of a directory on this machine, which needs no mirror.
_LOCAL: Final = ("file", "local")


@dataclass(frozen=True, kw_only=True)
class StorageUrl:
    """A storage that is not a directory, such as ``s3://bucket/prefix``.

    A search cannot run in it, because SQLite needs a real file. The search works in a scratch directory of
    its machine and mirrors its databases, checkpoints and reports to the URL.
    """

    url: str
    """The URL, without a slash at its end."""

    def __str__(self) -> str:
        """Return the URL."""
        return self.url

    @property
    def scheme(self) -> str:
        """The part before ``://``."""
        return self.url.partition("://")[0]


def parse_storage(text: str, *, where: str = "--storage") -> Path | StorageUrl:
    """Return the storage that a flag names, ``--storage`` or ``where``.

    A leading ``~/`` is the home directory, even if no shell has expanded it (``--storage=~/runs``).

    >>> parse_storage("s3://bucket/runs/")
    StorageUrl(url='s3://bucket/runs')
    >>> parse_storage("file:///mnt/shared") == parse_storage("/mnt/shared")
    True

    Raises:
        StorageError: a URL of several file systems (``simplecache::s3://...``), one without a place, or a
            text that only resembles a URL (``s3:/bucket``, ``file://folder``).
    """
    if "::" in text and "://" in text:
        rule = "must be a directory, or the URL of one file system"
        hint = "Leave out the part before the last `::`."
        raise StorageError(format_error(rule, got=repr(text), where=where, hint=hint))
    if not _SCHEME.match(text):
        scheme, colon, _ = text.partition(":")
        if colon and scheme.lower() in _SCHEMES.union(_LOCAL):
            # Path("s3://bucket") is `s3:/bucket`, a directory that would be created here.
            rule = f"must have `://` after {scheme}, or be a directory"
            hint = f"A directory of this name is ./{text}."
            raise StorageError(format_error(rule, got=repr(text), where=where, hint=hint))
        return _expanded(text, where)
    scheme, _, place = text.partition("://")
    if not place.strip("/"):
        rule = "must name a bucket or a directory after `://`"
        raise StorageError(format_error(rule, got=repr(text), where=where))
    if scheme not in _LOCAL:
        return StorageUrl(url=text.rstrip("/"))
    if not place.startswith("/"):
        rule = f"must have an absolute path after `{scheme}://`, as in {scheme}:///mnt/runs"
        raise StorageError(format_error(rule, got=repr(text), where=where))
    return Path(place)


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


#: Object stores: one PUT replaces a key in one step, and can be made conditional on the key's absence. On
#: other file systems a file is written under a temporary name and renamed, or created with mode "x".
_OBJECT_STORES: Final = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a"})

#: The schemes that an error message names, as far as fsspec has them; not that of memory, which is lost.
_SCHEMES: Final = (_OBJECT_STORES - {"memory"}) | {"hdfs", "sftp", "smb"}

#: The extra of this package to install for a scheme whose file system fsspec does not include.
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
    """An operation on the storage failed; a later try may succeed."""


class RemoteFolder:
    """A folder at a URL. Names are relative to it, with ``/``; a folder exists only while it has files."""

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        """Wrap an fsspec file system; see :meth:`connect`.

        Args:
            url: the folder's URL.
            filesystem: the fsspec file system.
            root: the folder's path in the file system.
        """
        self.url = url
        """The URL of the folder, without a slash at its end."""
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_object_store = url.partition("://")[0] in _OBJECT_STORES

    @classmethod
    def connect(cls, storage: StorageUrl, *, where: str = "--storage") -> RemoteFolder:
        """Return the storage's root without making a request; ``where`` is the flag that named the storage.

        Raises:
            StorageError: fsspec has no such scheme, or the package of the scheme is not installed.
        """
        # Imported here, because a search in a directory needs no fsspec.
        from fsspec.core import url_to_fs
        from fsspec.registry import available_protocols

        try:
            filesystem, root = url_to_fs(storage.url)
        except ValueError:
            known = sorted(_SCHEMES.intersection(available_protocols()))
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
            # Only the file system can check its URL: a port may be no number, or the host may be missing.
            rule = "must be a URL its file system understands"
            got = f"{storage.url} ({first_line(error)})"
            raise StorageError(format_error(rule, got=got, where=where)) from None
        return cls(storage.url, filesystem, root)

    def folder(self, name: str) -> RemoteFolder:
        """Return a folder in this one."""
        return RemoteFolder(f"{self.url}/{name}", self._fs, self._path(name))

    def read(self, name: str, *, start: int | None = None, end: int | None = None) -> bytes | None:
        """Return a file's bytes, or those in ``[start, end)``; None if there is no such file.

        Args:
            name: the file.
            start: the first byte; None: the start of the file.
            end: the byte after the last one; None: the end of the file.
        """
        with _as_remote_error(f"reading {self.url}/{name}"):
            try:
                return bytes(self._fs.cat_file(self._path(name), start=start, end=end))
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Create or replace a file in one step."""
        with _as_remote_error(f"writing {self.url}/{name}"), self._replacing(name) as path:
            self._fs.pipe_file(path, data)

    def create(self, name: str, data: bytes) -> bool:
        """Create a file unless the name exists; return whether this call created the file.

        If several callers create the same name at once, at most one receives True. The store must refuse an
        existing name, as S3, GCS, Azure and every POSIX file system do. If it cannot (it answers the
        condition with 501), the file is written and read back, which leaves a race of milliseconds. ``data``
        must differ between callers.
        """
        path = self._path(name)
        with _as_remote_error(f"writing {self.url}/{name}"):
            with suppress(FileExistsError):
                if self._create(path, data):
                    return True
            # The name also exists if a PUT arrived, lost its answer and was repeated.
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                return bytes(self._fs.cat_file(path)) == data
            return False

    def upload(self, source: Path, name: str) -> None:
        """Create or replace a file by a local one in one step, and check that all bytes arrived."""
        with _as_remote_error(f"writing {self.url}/{name}"), self._replacing(name) as path:
            size = source.stat().st_size
            self._fs.put_file(str(source), path)
            arrived = self._size(path)
            if arrived != size:
                raise OSError(errno.EIO, f"{arrived} of {size} bytes arrived")

    def download(self, name: str, target: Path) -> bool:
        """Replace a local file by one from this folder in one step; return False if there is no such file."""
        path = self._path(name)
        with _as_remote_error(f"reading {self.url}/{name}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with atomic_write(target) as scratch:
                    expected = self._size(path)
                    self._fs.get_file(path, str(scratch))
                    arrived = scratch.stat().st_size
                    # The size differs if the file was replaced in the meantime and the new one was read.
                    if arrived not in (expected, self._size(path)):
                        raise OSError(errno.EIO, f"{arrived} of {expected} bytes arrived")
            except FileNotFoundError:
                return False
        return True

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        with _as_remote_error(f"deleting {self.url}/{name}"), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def move(self, name: str, target: str) -> None:
        """Rename a file. An object store copies it and then deletes it, so a failure may leave both."""
        path, new = self._path(name), self._path(target)
        with _as_remote_error(f"moving {self.url}/{name} to {target}"):
            if self._is_object_store:
                self._fs.cp_file(path, new)
                self._fs.rm_file(path)
            else:
                self._fs.makedirs(new.rpartition("/")[0], exist_ok=True)
                self._fs.mv(path, new)

    def names(self, folder: str = "") -> list[str]:
        """Return the files in a folder and below it, sorted."""
        top = self._path(folder)
        with _as_remote_error(f"listing {self.url}/{folder}"):
            self._fs.invalidate_cache()
            found = [str(path) for path in self._fs.find(top)]
        # S3 lists by prefix, and represents folders by files of zero bytes.
        return sorted(self._name(path) for path in found if path.startswith(f"{top}/") and path != f"{top}/")

    def folders_with(self, name: str) -> list[str]:
        """Return the folders directly below this one that contain a file of this name, sorted."""
        with _as_remote_error(f"listing {self.url}"):
            self._fs.invalidate_cache()
            found = [str(path) for path in self._fs.glob(f"{glob.escape(self._root)}/*/{name}")]
        return sorted(self._name(path).partition("/")[0] for path in found)

    def modified(self, name: str) -> float | None:
        """Return when a file was last written, in seconds since 1970 by the store's clock; None if absent."""
        with _as_remote_error(f"looking at {self.url}/{name}"):
            self._fs.invalidate_cache()
            try:
                return float(self._fs.modified(self._path(name)).timestamp())
            except FileNotFoundError:
                return None

    def _size(self, path: str) -> int:
        self._fs.invalidate_cache()
        return int(self._fs.info(path)["size"])

    def _create(self, path: str, data: bytes) -> bool:
        """Create a file; return whether this call certainly created it."""
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

    @contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """Yield the path to write to; the complete file has the name ``name`` after the block."""
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
            with suppress(Exception):
                self._fs.rm_file(half)
            raise

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")


@contextmanager
def _as_remote_error(what: str) -> Iterator[None]:
    """Raise every exception in the block as a :class:`RemoteError` that names the operation, ``what``."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:
        raise RemoteError(f"{what}: {first_line(error)}") from error


@contextmanager
def local_file(place: str) -> Iterator[Path]:
    """Yield the file at a path, or a temporary copy of the file at a URL; the copy lasts for the block.

    Raises:
        StorageError: there is no file at the URL.
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


#: The name of a shared value's file, with the number of the value.
_VERSION: Final = re.compile(r"(\d{10})\.json")


class SharedValue:
    """A JSON value at a URL that several machines may change; every call may raise :class:`RemoteError`.

    Object stores have no locks and few support compare-and-swap, but they can refuse to create an existing
    key. Each value is therefore a new file with the next number; the process that creates the file has made
    the change::

        lease/0000000041.json      the past
        lease/0000000042.json      the value
    """

    #: Seconds after which a writer reads the value again. Some stores cannot refuse an existing name, so two
    #: processes that replace a value within milliseconds may both be told that they have succeeded.
    read_back_seconds = 0.5

    def __init__(self, folder: RemoteFolder) -> None:
        """Store the value in ``folder``, which must contain nothing else."""
        self._folder = folder
        self._version = 0

    def read(self) -> dict[str, Any] | None:
        """Return the value that any process wrote last; None if no process has written one."""
        while versions := self._versions():
            self._version = max(versions)
            data = self._folder.read(_version_name(self._version))
            if data is None:
                # The file was replaced and deleted between the two calls, so a newer one exists.
                continue
            try:
                value: dict[str, Any] = json.loads(data)
            except ValueError:
                # On a file system, a writer may have created the file without filling it yet; an object is
                # whole.
                raise RemoteError(f"{self._folder.url} is being written") from None
            return value
        self._version = 0
        return None

    def replace(self, expected: dict[str, Any] | None, value: dict[str, Any]) -> bool:
        """Replace the value if it still is ``expected``; return whether ``value`` is the value now.

        Args:
            expected: the value that :meth:`read` returned.
            value: the new value. It must differ between writers (it names its holder), because a store that
                cannot refuse an existing name is read back after the write.
        """
        if self.read() != expected:
            return False
        name = _version_name(self._version + 1)
        if not self._folder.create(name, json.dumps(value).encode()):
            return False
        versions = self._versions()
        if max(versions) > self._version + 1:
            # The number was free only because other writers have gone past it and deleted their old files.
            self._folder.delete(name)
            return False
        for old in versions:
            if old <= self._version:
                self._folder.delete(_version_name(old))
        return True

    def _versions(self) -> list[int]:
        matches = (_VERSION.fullmatch(name) for name in self._folder.names())
        return [int(match[1]) for match in matches if match]


def _version_name(version: int) -> str:
    return f"{version:010d}.json"
