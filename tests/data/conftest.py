"""Small image folders and zips."""

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


def picture(seed: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    """An encoded picture of noise; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


def left_out(listing: ImageIndex) -> dict[str, tuple[int, tuple[str, ...]]]:
    """The files that a listing leaves out, by kind."""
    return {one.kind: (one.count, one.names) for one in listing.account.left_out}


def write_zip(path: Path, entries: Mapping[str, bytes] | Iterable[str], method: int = 0) -> Path:
    """Write a zip of these entries, whose contents are their own names if none are given."""
    with zipfile.ZipFile(path, "w", method) as made:
        for name in entries:
            made.writestr(name, entries[name] if isinstance(entries, Mapping) else name.encode())
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``{"train/cat": 3, ...}`` images below a folder or into a zip; returns its path."""

    def make(counts: Mapping[str, int], name: str = "images", size: tuple[int, int] = (16, 16)) -> Path:
        files = {
            f"{folder}/{number:04}.png": picture(1000 * place + number, size)
            for place, (folder, count) in enumerate(counts.items())
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

    return make


@pytest.fixture
def open_folder(tmp_path: Path) -> OpenFolder:
    """Open a folder or zip with the cache in ``tmp_path/cache``; settings go to DatasetConfig."""

    def open_it(path: Path, **settings: Any) -> ImageDataset:
        known: dict[str, Any] = {"name": "folder", "path": str(path), "val_fraction": 0.25, **settings}
        config = DatasetConfig(**known)
        return open_dataset(config, data_root=tmp_path / "data", cache_root=tmp_path / "cache")

    return open_it
