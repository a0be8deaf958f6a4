"""Expand the home directory in a user's path, and check that a command can write to a path."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tune_rescon.errors import ConfigError, StorageError, format_error

__all__ = [
    "check_output_file",
    "check_output_folder",
    "ensure_home",
    "expanded_path",
    "home_directory",
    "writing_file",
]


def ensure_home() -> None:
    """Set ``HOME`` to the cache directory if the user has no home directory.

    Ray Tune and other libraries look up the home directory when they are imported. ``HOME`` is not changed
    if the user has a home directory, or if neither ``TUNE_RESCON_CACHE`` nor ``XDG_CACHE_HOME`` is set.
    Child processes inherit ``HOME``.
    """
    try:
        Path.home()
    except RuntimeError:
        cache = os.environ.get("TUNE_RESCON_CACHE") or os.environ.get("XDG_CACHE_HOME")
        if cache:
            os.environ["HOME"] = str(Path(cache).absolute())


def home_directory(variable: str) -> Path:
    """Return the user's home directory.

    Args:
        variable: the environment variable to set if the user has no home directory; the error names it.

    Raises:
        ConfigError: the user has no home directory; the error names the variable to set.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        rule = "must be set where the user has no home directory"
        raise ConfigError(format_error(rule, where=variable, hint=f"Set {variable} to a path.")) from error


def expanded_path(path: str | Path, *, where: str) -> Path:
    """Return ``path`` with the home directory in place of ``~`` or ``~NAME``.

    Args:
        path: the path.
        where: the flag or field with the path; the error message names it.

    Raises:
        ConfigError: this machine has no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        rule = "must begin with a home directory that this machine has"
        raise ConfigError(format_error(rule, got=path, where=where, hint="Give its whole path.")) from None


def check_output_file(path: Path, *, where: str) -> None:
    """Check that a file can be written. A file that is there will be replaced.

    Args:
        path: the file.
        where: the flag that names it.

    Raises:
        StorageError: it cannot be written: its folder is missing or not writable, or the path is a folder.
    """
    with writing_file(path, where=where):
        if path.is_dir():
            _refuse(errno.EISDIR)
        _write_in(path.parent)


@contextmanager
def writing_file(path: Path, *, where: str) -> Iterator[None]:
    """Raise an OSError of the block, which writes a file, as an error for the user.

    Args:
        path: the file.
        where: the flag that names it.

    Raises:
        StorageError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        rule = "must be a file that can be written"
        raise StorageError(format_error(rule, got=f"{path} ({error.strerror})", where=where)) from None


def check_output_folder(path: Path, *, where: str, is_new: bool = False) -> None:
    """Check that files can be written to a folder.

    Args:
        path: the folder. It and the folders above it need not exist.
        where: the flag that names it.
        is_new: the folder must be empty or missing, and the folder above it must exist.

    Raises:
        StorageError: the folder cannot be created, is not writable, or is not new.
    """
    try:
        if path.exists() and not path.is_dir():
            _refuse(errno.ENOTDIR)
        if is_new and path.is_dir() and any(path.iterdir()):
            _refuse(errno.ENOTEMPTY)
        place = path.absolute().parent if is_new else path.absolute()
        while not (is_new or place.exists()):
            place = place.parent
        _write_in(place)
    except OSError as error:
        rule = "must be a folder that can be written"
        if is_new:
            rule = "must be a folder that can be made, or an empty one"
        raise StorageError(format_error(rule, got=f"{path} ({error.strerror})", where=where)) from None


def _write_in(folder: Path) -> None:
    """Create a temporary file in ``folder``, because permissions alone do not show a read-only disk.

    Raises:
        OSError: the folder is not writable.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
