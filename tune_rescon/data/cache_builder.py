"""Build the cache: decode into a scratch folder, then publish the folder with one rename.

Any number of processes may request a cache at the same time. One of them builds it under a file lock; the
others wait and map the result. If the builder is killed, the system releases its lock, and the next builder
removes its files.
"""

from __future__ import annotations

import functools
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tune_rescon.atomic_write import sync
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
from tune_rescon.data.decode import BadImage, Block, Levels, SizesDifferError, widest
from tune_rescon.data.sources import Plan, Source
from tune_rescon.errors import DataError, StorageError, counted, format_error

__all__ = ["Progress", "open_or_build_cache", "write_cache"]


#: True: draw a progress bar. A callable: call it with (images done, total images) from time to time. False:
#: no output.
Progress = bool | Callable[[int, int], None]


@contextmanager
def _shown(progress: Progress, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows (images done, total images); ``title`` is the label of the bar."""
    if progress is not True:
        yield progress or (lambda _done, _total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


#: Fewer images than this are decoded in the calling process, because starting others takes longer.
_MIN_PARALLEL_IMAGES = 256

#: Idle decoding processes exit after this many seconds.
_IDLE_SECONDS = 10


def write_cache(
    plan: Plan,
    folder: Path,
    *,
    fingerprint: str,
    show: Callable[[int, int], None],
    on_bad: Callable[[BadImage], None],
) -> Levels | None:
    """Write the images, labels and metadata of a cache into an empty folder.

    Args:
        plan: The layout of all rows.
        folder: The folder to write into.
        fingerprint: Fingerprint of the source, for the metadata.
        show: Called with (images done, total images) after each chunk.
        on_bad: Called with each image that cannot be decoded; may raise to stop the build.

    Returns:
        The range of values of the training pictures of more than 8 bits, or None without such pictures. The
        pictures were scaled by the plan's range, which may be another one.

    Raises:
        SizesDifferError: The plan assumes one size, but the images differ in size.
        DataError: No training image can be decoded, or the system killed a decoding process.
        OSError: The folder cannot be written.
    """
    path = create_images(folder, plan.shape)
    done: dict[int, _Chunk] = {}
    images = 0
    for chunk in _stored(plan, path):
        for bad in chunk.bad:
            on_bad(bad)
        done[chunk.start] = chunk
        images += chunk.images
        show(images, plan.shape[0])
    ordered = [done[start] for start in sorted(done)]
    mean, std = _mean_std(ordered)
    levels = widest([chunk.levels for chunk in ordered if chunk.levels])
    meta = Meta(
        source=fingerprint,
        shape=plan.shape,
        counts=plan.counts,
        class_names=plan.class_names,
        mean=mean,
        std=std,
        skipped=tuple((bad.row, bad.name, bad.reason) for chunk in ordered for bad in chunk.bad),
        labels_digest=write_labels(folder, plan.labels_N),
        chunk_digests=tuple(chunk.digest for chunk in ordered),
        levels=plan.levels,
        repeats=tuple(_repeats(plan, ordered, path)),
        zero_ends=tuple(plan.names[row] for chunk in ordered for row in chunk.zero_ends),
    )
    write_meta(folder, meta)
    return levels


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Statistics of a stored chunk.

    Attributes:
        pixels: Number of pixels of its training images.
        sums: Sum of each channel over these pixels.
        squares: Sum of the squares of each channel over these pixels.
        levels: Range of values of its deep training pictures.
        zero_ends: Rows of the pictures whose file ends as after an interrupted copy.
        sample_digests: Digest of some pixels of each image; empty for a built-in dataset.
    """

    start: int
    images: int
    digest: str
    bad: tuple[BadImage, ...]
    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    levels: Levels | None
    zero_ends: tuple[int, ...]
    sample_digests: tuple[bytes, ...]


def _stored(plan: Plan, path: Path) -> Iterator[_Chunk]:
    """Store every chunk, and yield the chunks in the order in which they finish.

    joblib's loky processes need no ``__main__`` guard in the user's script and start from any thread or Ray
    worker. Threads are unsuitable: decoding a small jpeg runs mostly Python code, and two threads were slower
    than one.
    """
    tasks = ((plan.reader(rows), path, plan.shape, rows) for rows in chunks(plan.shape))
    store = functools.partial(_store, train_images=plan.counts["train"], is_named=bool(plan.names))
    joblib = _joblib() if plan.decodes and plan.shape[0] >= _MIN_PARALLEL_IMAGES else None
    if joblib is None or joblib.cpu_count() == 1:
        yield from (store(*task) for task in tasks)
        return
    parallel = joblib.Parallel(
        n_jobs=joblib.cpu_count(),
        backend="loky",
        return_as="generator_unordered",
        idle_worker_timeout=_IDLE_SECONDS,
    )
    try:
        yield from parallel(joblib.delayed(store)(*task) for task in tasks)
    except BrokenProcessPool as error:
        rule = "the images that are decoded at once must fit in this machine's memory"
        hint = "Free memory, or scale the largest images down."
        got = "a decoding process that was killed"
        raise DataError(format_error(rule, got=got, where="dataset", hint=hint)) from error


def _joblib() -> Any:
    """Return joblib, or None if it is not installed; then one process decodes.

    `make gpu-check` runs where only torch and Lightning are installed.
    """
    try:
        import joblib
    except ModuleNotFoundError:
        return None
    return joblib


def _store(
    read: Callable[[], Block], path: Path, shape: Shape, rows: slice, *, train_images: int, is_named: bool
) -> _Chunk:
    block = read()
    map_chunk(path, shape, rows)[:] = block.images_BHWC
    bad_rows = {bad.row for bad in block.bad}
    training = [row for row in range(rows.start, min(rows.stop, train_images)) if row not in bad_rows]
    pixels_BHWC = block.images_BHWC[np.array(training, dtype=np.int64) - rows.start]
    return _Chunk(
        start=rows.start,
        images=len(block.images_BHWC),
        digest=chunk_digest(block.images_BHWC),
        bad=block.bad,
        pixels=pixels_BHWC.size // shape[-1],
        sums=_channel_sums(pixels_BHWC),
        squares=_channel_sums(pixels_BHWC.astype(np.uint16) ** 2),
        levels=widest([block.deep[row] for row in training if row in block.deep]),
        zero_ends=block.zero_ends,
        sample_digests=tuple(map(_sample_digest, block.images_BHWC)) if is_named else (),
    )


#: Side of the sample of pixels that are compared first. A digest of all pixels of a large image would take a
#: tenth of the time of decoding it.
_SAMPLE_SIDE: Final = 64


def _sample_digest(image_HWC: npt.NDArray[np.uint8]) -> bytes:
    step = max(1, len(image_HWC) // _SAMPLE_SIDE)
    return blake2b(np.ascontiguousarray(image_HWC[::step, ::step]).data, digest_size=8).digest()


def _repeats(plan: Plan, done: list[_Chunk], path: Path) -> Iterator[tuple[int, str, int, str]]:
    """Yield each row with the same pixels as an earlier one, and the first such row; see :class:`Meta`."""
    first_of_sample: dict[bytes, int] = {}
    first_of_pixels: dict[bytes, int] = {}
    bad_rows = {bad.row for chunk in done for bad in chunk.bad}
    for chunk in done:
        for row, digest in enumerate(chunk.sample_digests, chunk.start):
            if row in bad_rows or (similar := first_of_sample.setdefault(digest, row)) == row:
                continue
            for each in (similar, row):
                image_BHWC = map_chunk(path, plan.shape, slice(each, each + 1))
                first = first_of_pixels.setdefault(blake2b(image_BHWC.data, digest_size=16).digest(), each)
            if first != row:
                yield row, plan.names[row], first, plan.names[first]


def _channel_sums(values_BHWC: npt.NDArray[np.unsignedinteger]) -> tuple[int, ...]:
    """Return the exact sum of each channel."""
    # Summing over the images first is about ten times faster than over all three axes at once, because numpy
    # then adds whole images, which are contiguous, instead of groups of C values.
    values_HWC = values_BHWC.sum(axis=0, dtype=np.uint64)
    return tuple(int(value) for value in values_HWC.sum(axis=(0, 1)))


def _mean_std(done: list[_Chunk]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over the training pixels, in 0..1."""
    pixels = sum(chunk.pixels for chunk in done)
    if not pixels:
        raise DataError(format_error("no training image can be decoded", where="dataset"))
    sums = np.array([chunk.sums for chunk in done], dtype=np.float64).sum(axis=0)
    squares = np.array([chunk.squares for chunk in done], dtype=np.float64).sum(axis=0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


_log = logging.getLogger(__name__)

_SCRATCH = ".building-"


def open_or_build_cache(source: Source, root: Path, *, skip_bad: bool, progress: Progress) -> Cache:
    """Map the source's cache. If the cache is absent, incomplete or outdated, build it first.

    Args:
        source: The images to decode.
        root: Folder that contains the caches of this node.
        skip_bad: Leave out images that cannot be decoded, instead of raising.
        progress: True draws a progress bar; a callable is called with (images done, total images).

    Raises:
        DataError: The source is invalid, or contains a broken image and ``skip_bad`` is False.
        StorageError: The cache cannot be written.
    """
    folder = root / source.key
    build = _Build(source, folder, source.fingerprint(), skip_bad, progress)
    try:
        cache = open_cache(folder, build.fingerprint)
    except CacheError:
        with _lock(folder):
            cache = _open_or_build(build)
    _check_skipped(cache, source, skip_bad=skip_bad)
    return cache


@dataclass(frozen=True)
class _Build:
    """The parameters of a build."""

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


def _open_or_build(build: _Build) -> Cache:
    try:
        # Another process may have built the cache while this process waited for the lock.
        return open_cache(build.folder, build.fingerprint)
    except CacheError as reason:
        if build.folder.exists():
            _log.warning("decoding %s again: its cache: %s", build.source.title, reason)
    scratch = build.folder.with_name(f"{build.folder.name}{_SCRATCH}{uuid.uuid4().hex}")
    try:
        _remove_leftovers(build.folder)
        scratch.mkdir()
        _decode_all(build, scratch)
        _publish(scratch, build.folder)
    except OSError as error:
        raise _unwritable(build.folder, error) from error
    finally:
        _remove(scratch)
    return open_cache(build.folder, build.fingerprint)


def _decode_all(build: _Build, scratch: Path) -> None:
    """Decode the source.

    Decode it again if the first pass finds images of different sizes, or deep pictures, whose range is only
    known after a pass.
    """
    alike = True
    try:
        levels = _decode(build, scratch, alike=True)
    except SizesDifferError:
        alike = False
        levels = _decode(build, scratch, alike=False)
    if levels is not None:
        _decode(build, scratch, alike=alike, levels=levels)


def _decode(build: _Build, scratch: Path, *, alike: bool, levels: Levels | None = None) -> Levels | None:
    """Write the cache to the scratch folder; return the range of values of the deep training pictures."""

    def on_bad(bad: BadImage) -> None:
        if not build.skip_bad:
            raise _bad_image(build.source, bad.name, bad.reason)

    plan = build.source.plan(alike=alike, levels=levels)
    with _shown(build.progress, f"decoding {Path(build.source.title).name}") as show:
        return write_cache(plan, scratch, fingerprint=build.fingerprint, show=show, on_bad=on_bad)


def _publish(scratch: Path, folder: Path) -> None:
    """Make the finished cache durable, then make it visible with one rename.

    Readers of an older cache keep their mapped pages.
    """
    for path in (*scratch.iterdir(), scratch):
        sync(path)
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}{_SCRATCH}old-{uuid.uuid4().hex}"))
    scratch.rename(folder)
    sync(folder.parent)
    _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of killed builders. The caller holds the lock, so no running builder needs them."""
    for path in folder.parent.glob(f"{folder.name}{_SCRATCH}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        # Processes of a killed builder may still write here for a moment. The next build removes the rest.
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _check_skipped(cache: Cache, source: Source, *, skip_bad: bool) -> None:
    """Raise if images were skipped and ``skip_bad`` is False; callers with either setting share one cache."""
    skipped = cache.meta.skipped
    if not skipped:
        return
    _, name, reason = skipped[0]
    if not skip_bad:
        raise _bad_image(source, name, reason)
    images = counted(len(skipped), "broken image")
    _log.warning("%s: left out %s, the first is %s", source.title, images, name)


def _bad_image(source: Source, name: str, reason: str) -> DataError:
    return DataError(
        format_error(
            "every image must be whole",
            got=f"{name}, which cannot be decoded ({reason})",
            where=source.title,
            hint="Repair or remove it, or set dataset.on_bad_image to skip.",
        )
    )


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        format_error(
            "the folder for decoded images must be writable and have room",
            got=f"{error.strerror or error}",
            where=str(folder.parent),
        )
    )
