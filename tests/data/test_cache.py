"""The cache's files: chunks, the checks on opening, and the digest of the content."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.conftest import flip_bit
from tune_rescon.data.cache import (
    CHUNK_BYTES,
    Cache,
    CacheError,
    Meta,
    chunk_digest,
    chunks,
    create_images,
    map_chunk,
    open_cache,
    write_labels,
    write_meta,
)

FILES = ("images.npy", "labels.npy", "meta.json")
SHAPE = (45, 4, 4, 3)


def write_small_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, *, chunk: int = 2) -> Meta:
    """Write a cache of 45 small random images, ``chunk`` images to a chunk."""
    monkeypatch.setattr("tune_rescon.data.cache.CHUNK_BYTES", chunk * 4 * 4 * 3)
    images_NHWC = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    path, digests = create_images(folder, SHAPE), []
    for rows in chunks(SHAPE):
        part_BHWC = map_chunk(path, SHAPE, rows)
        part_BHWC[:] = images_NHWC[rows]
        digests.append(chunk_digest(part_BHWC))
    meta = Meta(
        source="the source",
        shape=SHAPE,
        counts={"train": 30, "val": 15},
        class_names=("cat", "dog"),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        skipped=((3, "a.png", "cannot be decoded"),),
        labels_digest=write_labels(folder, np.arange(45)),
        chunk_digests=tuple(digests),
    )
    write_meta(folder, meta)
    return meta


@pytest.mark.parametrize("chunk", [1, 2, 7, 45, 100])
def test_chunked_cache_reads_back_equal(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = write_small_cache(tmp_path, monkeypatch, chunk=chunk)
    cache = open_cache(tmp_path, "the source")
    assert cache.meta == meta
    assert cache.folder == tmp_path
    assert len(meta.chunk_digests) == -(-45 // chunk)
    assert np.array_equal(cache.images_NHWC, np.load(tmp_path / "images.npy"))
    expected = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    assert np.array_equal(cache.images_NHWC, expected)
    assert not cache.images_NHWC.flags.writeable
    assert cache.labels_N.tolist() == list(range(45))


def test_chunks_are_consecutive_and_fit_their_size() -> None:
    assert list(chunks((7, CHUNK_BYTES // 6, 2, 1))) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(chunks((2, CHUNK_BYTES, 2, 1))) == [slice(0, 1), slice(1, 2)], (
        "a chunk has at least one image"
    )
    assert list(chunks((0, 4, 4, 3))) == []


def test_opening_reads_eight_chunks_spread_from_the_first_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_cache(tmp_path, monkeypatch, chunk=1)
    detected: dict[int, str] = {}
    for number in range(45):
        flip = flip_bit("images.npy", 128 + number * 4 * 4 * 3 + 5)
        flip(tmp_path)
        try:
            open_cache(tmp_path, "the source")
        except CacheError as error:
            detected[number] = str(error)
        flip(tmp_path)
    assert list(detected) == [0, 6, 13, 19, 25, 31, 38, 44]
    assert all(f"between images {number} and {number + 1}" in message for number, message in detected.items())


def test_every_chunk_of_a_small_cache_is_read_on_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_cache(tmp_path, monkeypatch, chunk=6)
    for number in range(8):
        flip = flip_bit("images.npy", 128 + number * 6 * 4 * 4 * 3)
        flip(tmp_path)
        with pytest.raises(CacheError, match="is damaged between"):
            open_cache(tmp_path, "the source")
        flip(tmp_path)
    assert isinstance(open_cache(tmp_path, "the source"), Cache)


def test_a_cache_of_another_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_cache(tmp_path, monkeypatch)
    with pytest.raises(CacheError, match="the source has changed"):
        open_cache(tmp_path, "another source")


def test_a_cache_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_cache(tmp_path, monkeypatch)
    monkeypatch.setattr("tune_rescon.data.cache.FORMAT", 99)
    with pytest.raises(CacheError, match="format is 1, not 99"):
        open_cache(tmp_path, "the source")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small_cache(tmp_path, monkeypatch)
    (tmp_path / name).unlink()
    with pytest.raises(CacheError, match=f"{name} is missing"):
        open_cache(tmp_path, "the source")


CONTENT_FIELDS: dict[str, object] = {
    "shape": (15, 4, 12, 3),
    "counts": {"train": 29, "val": 16},
    "class_names": ("dog", "cat"),
    "skipped": ((4, "a.png", "cannot be decoded"),),
    "labels_digest": "0" * 32,
    "chunk_digests": ("0" * 16,),
}
OTHER_FIELDS: dict[str, object] = {
    "format": 99,
    "source": "another",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "skipped": ((3, "b.png", "is empty"),),
}


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [
        *((field, value, False) for field, value in CONTENT_FIELDS.items()),
        *((field, value, True) for field, value in OTHER_FIELDS.items()),
    ],
)
def test_content_digest_depends_only_on_images_labels_and_splits(
    field: str, value: Any, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = write_small_cache(tmp_path, monkeypatch)
    changed: Meta = dataclasses.replace(meta, **{field: value})
    assert (changed.content == meta.content) is same
