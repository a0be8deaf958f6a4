"""Making the cache: decode on all cores into a scratch folder, then put it in place with one rename.

Any number of processes may ask at once: one builds under a file lock, the others wait and map its result.
The lock belongs to the process that holds it: a killed builder frees it, and the next one sweeps up.

Shape legend: B images of a chunk, H = W side, C channels.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tune_rescon.data.cache import (
    Cache,
    CacheError,
    Meta,
    Shape,
    chunk_digest,
    chunks,
    create_images,
    map_chunk,
    open_cache,
    write_labels,
    write_meta,
)
from tune_rescon.data.decode import BadImage, Block, SizesDifferError
from tune_rescon.data.progress import Progress, reporting
from tune_rescon.data.sources import Plan, Source
from tune_rescon.errors import DataError, StorageError, explain

__all__ = ["ensure_cache"]

_log = logging.getLogger(__name__)

#: Fewer images than this are decoded in the calling process: starting others takes longer.
_WORTH_PROCESSES = 256

#: Decoding processes that find nothing to do leave after this many seconds.
_IDLE_SECONDS = 10

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
    fingerprint = source.fingerprint()
    folder = root / source.key
    try:
        cache = open_cache(folder, fingerprint)
    except CacheError:
        with _lock(folder):
            cache = _open_or_build(source, folder, fingerprint, skip_bad=skip_bad, progress=progress)
    _judge_skipped(cache.meta.skipped, source, skip_bad=skip_bad)
    return cache


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    try:
        yield
    finally:
        lock.release()


def _open_or_build(
    source: Source, folder: Path, fingerprint: str, *, skip_bad: bool, progress: Progress
) -> Cache:
    try:
        # Another process may have built it while this one waited for the lock.
        return open_cache(folder, fingerprint)
    except CacheError as reason:
        if folder.exists():
            _log.warning("decoding %s again: its cache %s", source.title, reason)
    _sweep(folder)
    scratch = folder.with_name(f"{folder.name}{_SCRATCH}{uuid.uuid4().hex}")
    try:
        scratch.mkdir()
        _build(source, scratch, fingerprint, skip_bad=skip_bad, progress=progress)
        _publish(scratch, folder)
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
    finally:
        _remove(scratch)
    return open_cache(folder, fingerprint)


def _build(source: Source, scratch: Path, fingerprint: str, *, skip_bad: bool, progress: Progress) -> None:
    try:
        _fill(source.plan(alike=True), source, scratch, fingerprint, skip_bad=skip_bad, progress=progress)
    except SizesDifferError:
        _fill(source.plan(alike=False), source, scratch, fingerprint, skip_bad=skip_bad, progress=progress)


def _fill(
    plan: Plan, source: Source, scratch: Path, fingerprint: str, *, skip_bad: bool, progress: Progress
) -> None:
    path = create_images(scratch, plan.shape)
    done: dict[int, _Chunk] = {}
    with reporting(progress, f"decoding {Path(source.title).name}", plan.shape[0]) as advance:
        for chunk in _run(plan, path):
            if chunk.bad and not skip_bad:
                raise _bad_image(source, chunk.bad[0].name, chunk.bad[0].reason)
            done[chunk.start] = chunk
            advance(chunk.images)
    ordered = [done[start] for start in sorted(done)]
    mean, std = _mean_std(ordered)
    meta = Meta(
        source=fingerprint,
        shape=plan.shape,
        counts=plan.counts,
        class_names=plan.class_names,
        mean=mean,
        std=std,
        skipped=tuple((bad.row, bad.name, bad.reason) for chunk in ordered for bad in chunk.bad),
        labels_digest=write_labels(scratch, plan.labels_N),
        chunk_digests=tuple(chunk.digest for chunk in ordered),
    )
    write_meta(scratch, meta)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """What is kept of a stored chunk. Sums are over its training images' pixels: whole numbers, so exact."""

    start: int
    images: int
    digest: str
    bad: tuple[BadImage, ...]
    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]


def _run(plan: Plan, path: Path) -> Iterator[_Chunk]:
    """Store every chunk; they come as they are finished.

    joblib's loky processes need no ``__main__`` guard in the user's script and start from any thread or Ray
    worker. Threads would not do: a small jpeg is mostly Python, and two threads were slower than one.
    """
    jobs = joblib.cpu_count() if plan.decodes and plan.shape[0] >= _WORTH_PROCESSES else 1
    pool = joblib.Parallel(
        n_jobs=jobs,
        backend="loky" if jobs > 1 else "sequential",
        return_as="generator_unordered" if jobs > 1 else "generator",
        **({"idle_worker_timeout": _IDLE_SECONDS} if jobs > 1 else {}),
    )
    tasks = (
        joblib.delayed(_store)(plan.reader(rows), path, plan.shape, rows, plan.counts["train"])
        for rows in chunks(plan.shape)
    )
    yield from pool(tasks)


def _store(read: Callable[[], Block], path: Path, shape: Shape, rows: slice, train_images: int) -> _Chunk:
    block = read()
    images_BHWC = map_chunk(path, shape, rows)
    images_BHWC[:] = block.images_BHWC
    lost = {bad.row for bad in block.bad}
    training = [
        row - rows.start for row in range(rows.start, min(rows.stop, train_images)) if row not in lost
    ]
    pixels_BHWC = block.images_BHWC[training]
    return _Chunk(
        start=rows.start,
        images=len(images_BHWC),
        digest=chunk_digest(block.images_BHWC),
        bad=block.bad,
        pixels=pixels_BHWC.size // shape[-1],
        sums=_channel_sums(pixels_BHWC),
        squares=_channel_sums(pixels_BHWC.astype(np.uint16) ** 2),
    )


def _channel_sums(values_BHWC: npt.NDArray[np.unsignedinteger]) -> tuple[int, ...]:
    return tuple(int(value) for value in values_BHWC.sum(axis=(0, 1, 2), dtype=np.uint64))


def _mean_std(chunks_done: list[_Chunk]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel over the training pixels, in 0..1."""
    pixels = sum(chunk.pixels for chunk in chunks_done)
    if not pixels:
        raise DataError(explain("no training image can be decoded", where="dataset"))
    sums = np.array([chunk.sums for chunk in chunks_done], dtype=np.float64).sum(axis=0)
    squares = np.array([chunk.squares for chunk in chunks_done], dtype=np.float64).sum(axis=0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


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


def _judge_skipped(skipped: tuple[tuple[int, str, str], ...], source: Source, *, skip_bad: bool) -> None:
    if not skipped:
        return
    _, name, reason = skipped[0]
    if not skip_bad:
        raise _bad_image(source, name, reason)
    _log.warning(
        "%s: %d images cannot be decoded and are left out, the first is %s", source.title, len(skipped), name
    )


def _bad_image(source: Source, name: str, reason: str) -> DataError:
    return DataError(
        explain(
            "every image must be whole",
            got=f"{name}, which cannot be decoded ({reason})",
            where=source.title,
            hint="Repair or remove it, or set dataset.on_bad_image to skip.",
        )
    )


def _unwritable(root: Path, error: OSError) -> StorageError:
    return StorageError(
        explain(
            "the folder for decoded images must be writable and have room",
            got=f"{error.strerror or error}",
            where=str(root),
        )
    )
