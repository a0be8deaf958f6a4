"""The decoded cache on disk: its files, and how a reader knows they are whole and the right ones.

A cache is a folder::

    images.npy   uint8 N x H x W x C: training, then validation, then test images
    labels.npy   int64 N
    meta.json    Meta, and a digest of it

The image file counts as chunks of :data:`CHUNK_BYTES`, each with its digest in the metadata. Opening checks
the metadata's digest, format, source, header and length, all labels, and a few chunks spread over the file:
milliseconds, whatever the size. A flipped bit elsewhere in the pixels is only found by :func:`verify_all`.

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
    "verify_all",
    "write_labels",
    "write_meta",
]

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Shape = tuple[int, int, int, int]

#: Raise when what is stored, or how images are decoded, changes: older caches are then rebuilt.
FORMAT: Final = 1

CHUNK_BYTES: Final = 2 << 20
#: Chunks read on opening.
_SAMPLED_CHUNKS: Final = 8

_IMAGES: Final = "images.npy"
_LABELS: Final = "labels.npy"
_META: Final = "meta.json"


class CacheError(Exception):
    """These files are not the whole cache of that source: rebuild."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What is known about the stored images.

    Attributes:
        source: fingerprint of what they were decoded from.
        counts: images of each part, in the order they are stored.
        mean: of each channel over the training images, in 0..1.
        std: likewise.
        levels: the range of values that pictures of more than 8 bits were scaled by; None: there are none.
        skipped: rows that hold no image, with the image's name and why it could not be decoded.
        labels_digest: of labels.npy's bytes.
        chunk_digests: of the images' chunks, in order.
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

    @property
    def content(self) -> str:
        """Digest of the images, labels and parts themselves: equal on every node, wherever they came from."""
        known = [self.shape, self.counts, self.class_names, [row for row, *_ in self.skipped]]
        return _digest(json.dumps([*known, self.labels_digest, self.chunk_digests]).encode())


@dataclass(frozen=True, kw_only=True)
class Cache:
    """An open cache. The image pages are shared by every process that maps them."""

    folder: Path
    meta: Meta
    images_NHWC: ByteArray
    labels_N: IntArray


def chunk_rows(shape: Shape) -> int:
    """Images of one chunk.

    >>> chunk_rows((60_000, 32, 32, 3)), chunk_rows((10, 2048, 2048, 3))
    (682, 1)
    """
    return max(1, CHUNK_BYTES // math.prod(shape[1:]))


def chunks(shape: Shape) -> Iterator[slice]:
    """Rows of each chunk, in order."""
    rows = chunk_rows(shape)
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def chunk_digest(images_BHWC: ByteArray) -> str:
    """Digest of one chunk's pixels."""
    return blake2b(np.ascontiguousarray(images_BHWC).data, digest_size=8).hexdigest()


def create_images(folder: Path, shape: Shape) -> Path:
    """Make an empty image file of its final length, for chunks to be written into."""
    path, header = folder / _IMAGES, _npy_header(shape)
    length = len(header) + math.prod(shape)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(length)
        if hasattr(os, "posix_fallocate"):
            # A full disk is an error here; in a mapped page later it would be a SIGBUS.
            os.posix_fallocate(file.fileno(), 0, length)
    return path


def map_chunk(path: Path, shape: Shape, rows: slice) -> ByteArray:
    """Some rows of an image file being made, writable."""
    offset = len(_npy_header(shape)) + rows.start * math.prod(shape[1:])
    part = (rows.stop - rows.start, *shape[1:])
    return np.memmap(path, mode="r+", dtype=np.uint8, offset=offset, shape=part)


def write_labels(folder: Path, labels_N: IntArray) -> str:
    """Store the labels; returns their digest."""
    data = io.BytesIO()
    np.save(data, labels_N)
    (folder / _LABELS).write_bytes(data.getvalue())
    return _digest(data.getvalue())


def write_meta(folder: Path, meta: Meta) -> None:
    """Store the metadata: the last file, without which there is no cache."""
    body = json.dumps(dataclasses.asdict(meta), sort_keys=True)
    (folder / _META).write_text(json.dumps({"digest": _digest(body.encode()), "meta": body}))


def open_cache(folder: Path, source: str) -> Cache:
    """Map a cache and check it (see the module's head).

    Args:
        folder: of the cache.
        source: fingerprint it must have been decoded from.

    Raises:
        CacheError: absent, incomplete, damaged, of another format or of another source.
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


def verify_all(cache: Cache) -> None:
    """Read every pixel and compare its chunk's digest.

    Raises:
        CacheError: a chunk is damaged.
    """
    _check_chunks(cache, range(len(cache.meta.chunk_digests)))


def _read_meta(folder: Path) -> Meta:
    outer = json.loads((folder / _META).read_text())
    if _digest(outer["meta"].encode()) != outer["digest"]:
        raise CacheError(f"{_META} is damaged")
    known: dict[str, Any] = json.loads(outer["meta"], object_hook=_tuples)
    if known["format"] != FORMAT:
        raise CacheError(f"its format is {known['format']}, not {FORMAT}")
    return Meta(**known)


def _tuples(known: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists only; :class:`Meta` is frozen all through."""
    return {name: _tuple(value) if isinstance(value, list) else value for name, value in known.items()}


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _map_images(folder: Path, meta: Meta) -> ByteArray:
    path, header = folder / _IMAGES, _npy_header(meta.shape)
    with path.open("rb") as file:
        # Compared, not parsed: a damaged header is never believed.
        if file.read(len(header)) != header:
            raise CacheError(f"{_IMAGES} does not begin as an array of uint8 {meta.shape}")
    if path.stat().st_size != len(header) + math.prod(meta.shape):
        raise CacheError(f"{_IMAGES} has the wrong length")
    # Seen as a plain array: indexing an np.memmap costs a Python call for each result.
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
