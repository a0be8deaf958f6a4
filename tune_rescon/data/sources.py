"""The sources of a cache: an image folder or zip, or a built-in dataset.

A source describes itself without reading images. :meth:`Source.plan` then returns the layout of all rows of
the cache, and the function that reads the pixels of consecutive rows.

Shape legend: N images, H = W side, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tune_rescon.config import DatasetConfig
from tune_rescon.data.cache import FORMAT, Shape
from tune_rescon.data.catalog import BUILTIN, dataset_path, load_arrays
from tune_rescon.data.decode import Block, Levels, common_size, decode_block, stored_size
from tune_rescon.data.image_folder import PARTS, fingerprint, list_folder
from tune_rescon.data.selection import Selection

__all__ = ["Plan", "Source", "find_source"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The layout of a cache before it is built: training, then validation, then test images.

    Attributes:
        counts: Number of images of each part.
        reader: Returns, for consecutive rows, the function that reads them and is sent to decoding processes.
        decodes: False if reading only copies images, for which starting processes is not worthwhile.
        levels: Range of values by which pictures of more than 8 bits become bytes; None: not known yet.
        names: Name of each row's image in the source; empty for a built-in dataset.
    """

    shape: Shape
    counts: Mapping[str, int]
    class_names: tuple[str, ...]
    labels_N: npt.NDArray[np.int64]
    reader: Callable[[slice], Callable[[], Block]]
    decodes: bool
    levels: Levels | None = None
    names: tuple[str, ...] = ()


class Source(Protocol):
    """A source of images. Creating one reads no files."""

    @property
    def key(self) -> str:
        """Name of the cache folder, unique for each source, size and format."""

    @property
    def title(self) -> str:
        """Name of the source in messages."""

    def fingerprint(self) -> str:
        """Return a string that changes with the images. This call is quick.

        Raises:
            DataError: The source is missing.
        """

    def plan(self, *, alike: bool, levels: Levels | None = None) -> Plan:
        """Return the layout of the cache.

        Args:
            alike: False if images that were assumed to have one size differ in size.
            levels: Range of the pictures of more than 8 bits, if it is known.

        Raises:
            DataError: The source is invalid, or cannot be read or downloaded.
        """


def find_source(dataset: DatasetConfig, data_root: Path) -> Source:
    """Return the source of a dataset.

    Raises:
        DataError: The name is unknown, or ``path`` is missing or given for a built-in dataset.
    """
    path = dataset_path(dataset, data_root)
    if path is None:
        return _BuiltInSource(name=dataset.name, data_root=data_root)
    return _FolderSource(
        path=path,
        store_size=dataset.store_size,
        resize=dataset.resize,
        selection=Selection.of(dataset),
    )


@dataclass(frozen=True, kw_only=True)
class _FolderSource:
    path: Path
    store_size: int | None
    resize: str
    selection: Selection

    @property
    def key(self) -> str:
        # "crop" adds nothing to the key, so that caches of older versions stay valid.
        resize = "" if self.resize == "crop" else self.resize
        place = f"{self.path}\0{self.store_size}{resize}{self.selection.key}"
        return (
            f"folder-v{FORMAT}-{blake2b(place.encode(errors='surrogateescape'), digest_size=8).hexdigest()}"
        )

    @property
    def title(self) -> str:
        return str(self.path)

    def fingerprint(self) -> str:
        return fingerprint(self.path, self.selection)

    def plan(self, *, alike: bool, levels: Levels | None = None) -> Plan:
        listing = list_folder(self.path, self.selection)
        parts = [getattr(listing, part) for part in PARTS]
        names = listing.names
        common = common_size(self.path, names) if alike else None
        side, size = stored_size(common, self.store_size, self.resize)
        decode = partial(decode_block, self.path, side=side, size=size, resize=self.resize, levels=levels)

        def reader(rows: slice) -> Callable[[], Block]:
            return partial(decode, names[rows], first_row=rows.start)

        return Plan(
            shape=(len(names), side, side, 3),
            counts={part: len(found.names) for part, found in zip(PARTS, parts, strict=True)},
            class_names=listing.class_names,
            labels_N=np.concatenate([np.array(found.labels, dtype=np.int64) for found in parts]),
            reader=reader,
            decodes=True,
            levels=levels,
            names=names,
        )


@dataclass(frozen=True, kw_only=True)
class _BuiltInSource:
    name: str
    data_root: Path

    @property
    def key(self) -> str:
        return f"{self.name}-v{FORMAT}"

    @property
    def title(self) -> str:
        return self.name

    def fingerprint(self) -> str:
        # Published files never change (torchvision checks their MD5), and may be deleted once decoded.
        return self.name

    def plan(self, *, alike: bool, levels: Levels | None = None) -> Plan:
        assert alike and levels is None, "a dataset known by name has images of one size, of 8 bits"  # noqa: PT018
        (train_NHWC, train_N), (test_NHWC, test_N) = load_arrays(self.name, self.data_root)
        images_NHWC = np.concatenate([train_NHWC, test_NHWC])
        count, height, width, channels = images_NHWC.shape
        return Plan(
            shape=(count, height, width, channels),
            counts={"train": len(train_N), "val": 0, "test": len(test_N)},
            class_names=BUILTIN[self.name].class_names,
            labels_N=np.concatenate([train_N, test_N]),
            reader=lambda rows: partial(Block, images_BHWC=images_NHWC[rows], bad=()),
            decodes=False,
        )
