"""Creates small image folders and zip archives, and opens them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tune_rescon.config import DatasetConfig
from tune_rescon.data import ImageDataset, open_dataset
from tune_rescon.data.image_folder import ImageIndex

MakeFolder = Callable[..., Path]
OpenFolder = Callable[..., ImageDataset]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def encode(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    """Return the bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def encoded_image(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    """Return an encoded noise image; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), kind)


def left_out_files(listing: ImageIndex) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return the count and the first names of the files that an index leaves out, by kind."""
    return {one.kind: (one.count, one.names) for one in listing.account.left_out}


def write_zip(path: Path, entries: Mapping[str, bytes] | Iterable[str], method: int = 0) -> Path:
    """Write a zip archive. The content of an entry is its own name if none is given."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in entries:
            archive.writestr(name, entries[name] if isinstance(entries, Mapping) else name.encode())
    return path


def flip_bit(name: str, at: int) -> Callable[[Path], object]:
    """Return a function that flips a bit of the byte at ``at`` in the file ``name`` of a folder."""

    def flip(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return flip


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes ``{"train/cat": 3, ...}`` images into a folder, or into a zip if ``name`` ends in ``.zip``."""

    def make_images(
        counts: Mapping[str, int], name: str = "images", size: tuple[int, int] = (16, 16)
    ) -> Path:
        files = {
            f"{folder}/{number:04}.png": encoded_image(1000 * index + number, size)
            for index, (folder, count) in enumerate(counts.items())
            for number in range(count)
        }
        root = tmp_path / name
        if name.endswith(".zip"):
            with zipfile.ZipFile(root, "w") as archive:
                for path, data in files.items():
                    archive.writestr(path, data)
            return root
        for folder in counts:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            (root / path).write_bytes(data)
        return root

    return make_images


@pytest.fixture
def open_folder(tmp_path: Path) -> OpenFolder:
    """Opens a folder or zip with its cache in ``tmp_path/cache``; settings are passed to DatasetConfig."""

    def open_dataset_of(path: Path, **settings: Any) -> ImageDataset:
        arguments: dict[str, Any] = {"name": "folder", "path": str(path), "val_fraction": 0.25, **settings}
        config = DatasetConfig(**arguments)
        return open_dataset(config, data_root=tmp_path / "data", cache_root=tmp_path / "cache")

    return open_dataset_of
