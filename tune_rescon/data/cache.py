"""The decoded cache on disk: its files, and the checks that they are complete and up to date.

A cache is a folder::

    images.npy   uint8 N x H x W x C: training, then validation, then test images
    labels.npy   int64 N
    meta.json    Meta, and a digest of it

The image file is divided into chunks of :data:`CHUNK_BYTES`; the metadata contains the digest of each chunk.
Opening checks the metadata's digest, format and source, the header and length of the image file, all labels,
and a few chunks spread over the file. This takes milliseconds at any size. A flipped bit in another chunk is
not detected.

Shape legend: N images, H = W side, C channels, B images of a chunk.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "FORMAT",
    "Cache",
    "CacheError",
    "Meta",
    "chunk_digest",
    "chunk_rows",
    "chunks",
    "create_images",
    "map_chunk",
    "open_cache",
    "write_labels",
    "write_meta",
]

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Shape = tuple[int, int, int, int]

#: Increase this number if the stored data or the decoding of images changes: older caches are then rebuilt.
FORMAT: Final = 1

CHUNK_BYTES: Final = 2 << 20
#: Number of chunks that are checked on opening.
_SAMPLED_CHUNKS: Final = 8

_IMAGES: Final = "images.npy"
_LABELS: Final = "labels.npy"
_META: Final = "meta.json"


class CacheError(Exception):
    """Raised if the files are not a complete cache of the source; the cache must be rebuilt."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Metadata of the stored images.

    Attributes:
        source: Fingerprint of the source of the images.
        counts: Number of images of each part, in the order in which the parts are stored.
        mean: Mean of each channel over the training images, in 0..1.
        std: Standard deviation of each channel over the training images, in 0..1.
        levels: Range of values by which pictures of more than 8 bits were scaled; None without such pictures.
        skipped: Rows without an image: (row, name of the image, reason why it could not be decoded).
        labels_digest: Digest of the bytes of labels.npy.
        chunk_digests: Digests of the chunks of images, in order.
        repeats: Rows with the same pixels as an earlier row: (row, its name in the source, the first such
            row, its name). Empty for a built-in dataset, and in a cache of an earlier version.
        zero_ends: Names of the pictures whose file ends as after an interrupted copy.
    """

    format: int = FORMAT
    source: str
    shape: Shape
    counts: Mapping[str, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: tuple[tuple[int, str, str], ...]
    labels_digest: str
    chunk_digests: tuple[str, ...]
    levels: tuple[float, float] | None = None
    repeats: tuple[tuple[int, str, int, str], ...] = ()
    zero_ends: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """Digest of the images, labels and parts, equal on every node and independent of their source."""
        skipped_rows = [row for row, *_ in self.skipped]
        content = [self.shape, self.counts, self.class_names, skipped_rows]
        return _digest(json.dumps([*content, self.labels_digest, self.chunk_digests]).encode())


@dataclass(frozen=True, kw_only=True)
class Cache:
    """An open cache. All processes that map it share its image pages."""

    folder: Path
    meta: Meta
    images_NHWC: ByteArray
    labels_N: IntArray


def chunk_rows(shape: Shape) -> int:
    """Return the number of images in a chunk.

    >>> chunk_rows((60_000, 32, 32, 3)), chunk_rows((10, 2048, 2048, 3))
    (682, 1)
    """
    return max(1, CHUNK_BYTES // math.prod(shape[1:]))


def chunks(shape: Shape) -> Iterator[slice]:
    """Yield the rows of each chunk, in order."""
    rows = chunk_rows(shape)
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def chunk_digest(images_BHWC: ByteArray) -> str:
    """Return the digest of the pixels of one chunk."""
    return blake2b(np.ascontiguousarray(images_BHWC).data, digest_size=8).hexdigest()


def create_images(folder: Path, shape: Shape) -> Path:
    """Create an empty image file of its final length, into which chunks can be written."""
    path, header = folder / _IMAGES, _npy_header(shape)
    length = len(header) + math.prod(shape)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(length)
        if hasattr(os, "posix_fallocate"):
            # A full disk raises an error here. Later, writing to a mapped page would raise SIGBUS.
            os.posix_fallocate(file.fileno(), 0, length)
    return path


def map_chunk(path: Path, shape: Shape, rows: slice) -> ByteArray:
    """Map some rows of an unfinished image file for writing.

    Args:
        path: The image file.
        shape: Shape of all images, N x H x W x C.
        rows: The rows to map.
    """
    offset = len(_npy_header(shape)) + rows.start * math.prod(shape[1:])
    part = (rows.stop - rows.start, *shape[1:])
    return np.memmap(path, mode="r+", dtype=np.uint8, offset=offset, shape=part)


def write_labels(folder: Path, labels_N: IntArray) -> str:
    """Store the labels and return their digest."""
    data = io.BytesIO()
    np.save(data, labels_N)
    (folder / _LABELS).write_bytes(data.getvalue())
    return _digest(data.getvalue())


def write_meta(folder: Path, meta: Meta) -> None:
    """Store the metadata. It must be written last, because it makes the cache complete."""
    body = json.dumps(dataclasses.asdict(meta), sort_keys=True)
    (folder / _META).write_text(json.dumps({"digest": _digest(body.encode()), "meta": body}))


def open_cache(folder: Path, source: str) -> Cache:
    """Map the cache of the source with this fingerprint, and check it; the module docstring lists the checks.

    Raises:
        CacheError: The cache is absent, incomplete, damaged, of another format or of another source.
    """
    try:
        meta = _read_meta(folder)
        if meta.source != source:
            raise CacheError("the source has changed")
        images_NHWC = _map_images(folder, meta)
        labels_N = _read_labels(folder, meta)
    except FileNotFoundError as error:
        raise CacheError(f"{error.filename} is missing") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CacheError(f"unreadable: {error}") from error
    cache = Cache(folder=folder, meta=meta, images_NHWC=images_NHWC, labels_N=labels_N)
    last = len(meta.chunk_digests) - 1
    _check_chunks(cache, sorted({round(i * last / (_SAMPLED_CHUNKS - 1)) for i in range(_SAMPLED_CHUNKS)}))
    return cache


def _read_meta(folder: Path) -> Meta:
    outer = json.loads((folder / _META).read_text())
    if _digest(outer["meta"].encode()) != outer["digest"]:
        raise CacheError(f"{_META} is damaged")
    values: dict[str, Any] = json.loads(outer["meta"], object_hook=_tuples)
    if values["format"] != FORMAT:
        raise CacheError(f"its format is {values['format']}, not {FORMAT}")
    return Meta(**values)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Convert lists to tuples, because JSON has only lists and the fields of :class:`Meta` are immutable."""
    return {name: _tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _map_images(folder: Path, meta: Meta) -> ByteArray:
    path, header = folder / _IMAGES, _npy_header(meta.shape)
    with path.open("rb") as file:
        # The header is compared, not parsed, so that a damaged header is never trusted.
        if file.read(len(header)) != header:
            raise CacheError(f"{_IMAGES} does not begin as an array of uint8 {meta.shape}")
    if path.stat().st_size != len(header) + math.prod(meta.shape):
        raise CacheError(f"{_IMAGES} has the wrong length")
    # The view is a plain array, because indexing an np.memmap costs a Python call for each result.
    return np.memmap(path, mode="r", dtype=np.uint8, shape=meta.shape, offset=len(header)).view(np.ndarray)


def _read_labels(folder: Path, meta: Meta) -> IntArray:
    data = (folder / _LABELS).read_bytes()
    if _digest(data) != meta.labels_digest:
        raise CacheError(f"{_LABELS} is damaged")
    labels_N: IntArray = np.load(io.BytesIO(data))
    return labels_N


def _check_chunks(cache: Cache, numbers: Iterable[int]) -> None:
    rows = list(chunks(cache.meta.shape))
    for number in numbers:
        if chunk_digest(cache.images_NHWC[rows[number]]) != cache.meta.chunk_digests[number]:
            raise CacheError(
                f"{_IMAGES} is damaged between images {rows[number].start} and {rows[number].stop}"
            )


def _npy_header(shape: Shape) -> bytes:
    header = io.BytesIO()
    layout = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, layout)
    return header.getvalue()


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
