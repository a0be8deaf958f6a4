"""Filling a cache's folder from a plan, on all cores: pixels chunk by chunk, and the statistics on the way.

Shape legend: B images of a chunk, H = W side, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tune_rescon.data.cache import (
    Meta,
    Shape,
    chunk_digest,
    chunks,
    create_images,
    map_chunk,
    write_labels,
    write_meta,
)
from tune_rescon.data.decode import BadImage, Block
from tune_rescon.data.levels import Levels, widest
from tune_rescon.data.sources import Plan
from tune_rescon.errors import DataError, explain

__all__ = ["fill"]

#: Fewer images than this are decoded in the calling process: starting others takes longer.
_WORTH_PROCESSES = 256

#: Decoding processes that find nothing to do leave after this many seconds.
_IDLE_SECONDS = 10


def fill(
    plan: Plan,
    folder: Path,
    *,
    fingerprint: str,
    advance: Callable[[int], None],
    on_bad: Callable[[BadImage], None],
) -> Levels | None:
    """Write the images, labels and metadata of a cache into an empty folder.

    Args:
        plan: every row.
        folder: to write into.
        fingerprint: of the source, for the metadata.
        advance: told how many more images are done.
        on_bad: told of each image that cannot be decoded; may raise to give up.

    Returns:
        The range of values of the training pictures of more than 8 bits; None: there are none. Where it is
        not the plan's, they were not scaled by it.

    Raises:
        SizesDifferError: images that the plan takes for one size are not.
        DataError: no training image can be decoded.
        OSError: the folder cannot be written.
    """
    path = create_images(folder, plan.shape)
    done: dict[int, _Chunk] = {}
    for chunk in _stored(plan, path):
        for bad in chunk.bad:
            on_bad(bad)
        done[chunk.start] = chunk
        advance(chunk.images)
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
    )
    write_meta(folder, meta)
    return levels


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """What is kept of a stored chunk. Sums are over its training images' pixels: whole numbers, so exact.

    Levels are those of its deep training pictures.
    """

    start: int
    images: int
    digest: str
    bad: tuple[BadImage, ...]
    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    levels: Levels | None


def _stored(plan: Plan, path: Path) -> Iterator[_Chunk]:
    """Store every chunk; they come as they are finished.

    joblib's loky processes need no ``__main__`` guard in the user's script and start from any thread or Ray
    worker. Threads would not do: a small jpeg is mostly Python, and two threads were slower than one.
    """
    tasks = ((plan.reader(rows), path, plan.shape, rows, plan.counts["train"]) for rows in chunks(plan.shape))
    joblib = _joblib() if plan.decodes and plan.shape[0] >= _WORTH_PROCESSES else None
    if joblib is None or joblib.cpu_count() == 1:
        yield from (_store(*task) for task in tasks)
        return
    parallel = joblib.Parallel(
        n_jobs=joblib.cpu_count(),
        backend="loky",
        return_as="generator_unordered",
        idle_worker_timeout=_IDLE_SECONDS,
    )
    yield from parallel(joblib.delayed(_store)(*task) for task in tasks)


def _joblib() -> Any:
    """None where only torch and Lightning are (`make gpu-check`): one process decodes there."""
    try:
        import joblib
    except ModuleNotFoundError:
        return None
    return joblib


def _store(read: Callable[[], Block], path: Path, shape: Shape, rows: slice, train_images: int) -> _Chunk:
    block = read()
    map_chunk(path, shape, rows)[:] = block.images_BHWC
    lost = {bad.row for bad in block.bad}
    training = [row for row in range(rows.start, min(rows.stop, train_images)) if row not in lost]
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
    )


def _channel_sums(values_BHWC: npt.NDArray[np.unsignedinteger]) -> tuple[int, ...]:
    return tuple(int(value) for value in values_BHWC.sum(axis=(0, 1, 2), dtype=np.uint64))


def _mean_std(done: list[_Chunk]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel over the training pixels, in 0..1."""
    pixels = sum(chunk.pixels for chunk in done)
    if not pixels:
        raise DataError(explain("no training image can be decoded", where="dataset"))
    sums = np.array([chunk.sums for chunk in done], dtype=np.float64).sum(axis=0)
    squares = np.array([chunk.squares for chunk in done], dtype=np.float64).sum(axis=0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
