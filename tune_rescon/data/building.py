"""Making the cache: decode into a scratch folder, then put it in place with one rename.

Any number of processes may ask at once: one builds under a file lock, the others wait and map its result.
The lock belongs to the process that holds it: a killed builder frees it, and the next one sweeps up.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tune_rescon.data.cache import Cache, CacheError, open_cache
from tune_rescon.data.decode import BadImage, SizesDifferError
from tune_rescon.data.filling import fill
from tune_rescon.data.levels import Levels
from tune_rescon.data.progress import Progress, reporting
from tune_rescon.data.sources import Source
from tune_rescon.errors import DataError, StorageError, explain

__all__ = ["ensure_cache"]

_log = logging.getLogger(__name__)

_SCRATCH = ".building-"


def ensure_cache(source: Source, root: Path, *, skip_bad: bool, progress: Progress) -> Cache:
    """Map the source's cache, building it first where there is none that is whole and current.

    Args:
        source: what to decode.
        root: folder that holds the caches of this node.
        skip_bad: leave out images that cannot be decoded, instead of raising.
        progress: True draws a bar; a callable gets (images done, images in all).

    Raises:
        DataError: the source is not what it should be, or holds a broken image and ``skip_bad`` is off.
        StorageError: the cache cannot be written.
    """
    folder = root / source.key
    order = _Order(source, folder, source.fingerprint(), skip_bad, progress)
    try:
        cache = open_cache(folder, order.fingerprint)
    except CacheError:
        with _lock(folder):
            cache = _open_or_build(order)
    _judge_skipped(cache, source, skip_bad=skip_bad)
    return cache


@dataclass(frozen=True)
class _Order:
    """One cache to be made."""

    source: Source
    folder: Path
    fingerprint: str
    skip_bad: bool
    progress: Progress


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _open_or_build(order: _Order) -> Cache:
    try:
        # Another process may have built it while this one waited for the lock.
        return open_cache(order.folder, order.fingerprint)
    except CacheError as reason:
        if order.folder.exists():
            _log.warning("decoding %s again: its cache: %s", order.source.title, reason)
    scratch = order.folder.with_name(f"{order.folder.name}{_SCRATCH}{uuid.uuid4().hex}")
    try:
        _sweep(order.folder)
        scratch.mkdir()
        _build(order, scratch)
        _publish(scratch, order.folder)
    except OSError as error:
        raise _unwritable(order.folder, error) from error
    finally:
        _remove(scratch)
    return open_cache(order.folder, order.fingerprint)


def _build(order: _Order, scratch: Path) -> None:
    """Decode, twice where the first pass finds what it could not know: unlike sizes, or deep pictures."""
    alike = True
    try:
        levels = _decode(order, scratch, alike=True)
    except SizesDifferError:
        alike = False
        levels = _decode(order, scratch, alike=False)
    if levels is not None:
        _decode(order, scratch, alike=alike, levels=levels)


def _decode(order: _Order, scratch: Path, *, alike: bool, levels: Levels | None = None) -> Levels | None:
    """Fill the scratch folder; returns the range of values of deep training pictures, if there are any."""

    def judge(bad: BadImage) -> None:
        if not order.skip_bad:
            raise _bad_image(order.source, bad.name, bad.reason)

    plan = order.source.plan(alike=alike, levels=levels)
    title = f"decoding {Path(order.source.title).name}"
    with reporting(order.progress, title, plan.shape[0]) as advance:
        return fill(plan, scratch, fingerprint=order.fingerprint, advance=advance, on_bad=judge)


def _publish(scratch: Path, folder: Path) -> None:
    """Make the finished cache durable, then visible all at once. Readers of an older one keep their pages."""
    for path in (*scratch.iterdir(), scratch):
        _fsync(path)
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}{_SCRATCH}old-{uuid.uuid4().hex}"))
    scratch.rename(folder)
    _fsync(folder.parent)
    _sweep(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what killed builders left. The lock is held, so no living one owns any of it."""
    for path in folder.parent.glob(f"{folder.name}{_SCRATCH}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        # A killed builder's processes may still be writing here for a moment: the next sweep gets the rest.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _judge_skipped(cache: Cache, source: Source, *, skip_bad: bool) -> None:
    """One cache serves those who skip and those who mind."""
    skipped = cache.meta.skipped
    if not skipped:
        return
    _, name, reason = skipped[0]
    if not skip_bad:
        raise _bad_image(source, name, reason)
    _log.warning("%s: left out %d broken images, the first is %s", source.title, len(skipped), name)


def _bad_image(source: Source, name: str, reason: str) -> DataError:
    return DataError(
        explain(
            "every image must be whole",
            got=f"{name}, which cannot be decoded ({reason})",
            where=source.title,
            hint="Repair or remove it, or set dataset.on_bad_image to skip.",
        )
    )


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        explain(
            "the folder for decoded images must be writable and have room",
            got=f"{error.strerror or error}",
            where=str(folder.parent),
        )
    )
