"""The sources of a cache's images: a folder or zip, or a built-in dataset.

A source describes itself without reading images. :meth:`Source.plan` then returns the layout of all rows of
the cache, and the function that reads the pixels of consecutive rows.

Shape legend: N images, H = W side, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from tune_rescon.config import DatasetConfig
from tune_rescon.data.cache import FORMAT, Shape
from tune_rescon.data.catalog import BUILTIN, dataset_path
from tune_rescon.data.decode import Block, Levels, common_size, decode_block, stored_size
from tune_rescon.data.image_folder import fingerprint, list_folder
from tune_rescon.data.selection import PARTS, Selection
from tune_rescon.data.splits import SplitRule, stratified_split
from tune_rescon.errors import DataError, first_line, format_error

__all__ = ["FOLDER_FORMAT", "Plan", "Source", "find_source", "load_arrays"]


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
        path=path, store_size=dataset.store_size, resize=dataset.resize, selection=Selection.of(dataset)
    )


#: Increase this number if the images of a folder are listed or decoded differently: their caches are then
#: rebuilt. Those of built-in datasets are not, because their archives may be gone.
FOLDER_FORMAT: Final = 4


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
        return f"{fingerprint(self.path, self.selection)}-{FOLDER_FORMAT}"

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
        assert alike, "the images of a built-in dataset have one size"
        assert levels is None, "the images of a built-in dataset have 8 bits"
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


ByteArray = npt.NDArray[np.uint8]
Arrays = tuple[ByteArray, npt.NDArray[np.int64]]

#: scikit-learn's digits have no official test part. This package defines one; it ignores the split seed.
_DIGITS_TEST: Final = SplitRule(limit=None, val_fraction=0.2, seed=0)
_DIGITS_LEVELS: Final = 16
_DIGITS_SIDE: Final = 8


def load_arrays(name: str, data_root: Path) -> tuple[Arrays, Arrays]:
    """Return (images_NHWC, labels_N) of the training part and of the test part.

    Raises:
        DataError: The dataset is absent and the download failed. The message names the missing file and its
            folder.
    """
    if name == "digits":
        return _digits()
    try:
        return _torchvision(name, data_root, train=True), _torchvision(name, data_root, train=False)
    except (OSError, RuntimeError, EOFError) as error:
        # torchvision's errors for a failed download, and for a file that does not match its checksum.
        builtin = BUILTIN[name]
        raise DataError(
            format_error(
                f"{name} is not in the data root and could not be downloaded ({first_line(error)})",
                where="dataset",
                hint=f"Put {' and '.join(builtin.archives)} into {(data_root / builtin.folder).resolve()}",
            )
            + " and start again."
        ) from error


def _digits() -> tuple[Arrays, Arrays]:
    # Each line holds the 64 pixels of an image and its label.
    values_NV = np.loadtxt(_digits_file(), delimiter=",")
    pixels_NHW = values_NV[:, :-1].reshape(-1, _DIGITS_SIDE, _DIGITS_SIDE)
    images_NHWC = np.rint(pixels_NHW * (255 / _DIGITS_LEVELS)).astype(np.uint8)[..., None]
    labels_N = values_NV[:, -1].astype(np.int64)
    split = stratified_split(labels_N, 10, _DIGITS_TEST)
    train, test = ((images_NHWC[rows], labels_N[rows]) for rows in (split.train_N, split.val_N))
    return train, test


def _digits_file() -> Path:
    """Return the file that ``sklearn.datasets.load_digits`` reads.

    The package reads this file itself, because importing scikit-learn takes seconds.
    """
    package = find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.origin is not None, "scikit-learn is an ordinary package"
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _torchvision(name: str, data_root: Path, *, train: bool) -> Arrays:
    # Importing torch takes seconds. Only building the cache needs it.
    from torchvision import datasets

    part = "train" if train else "test"
    opened: Mapping[str, Callable[[], Any]] = {
        "cifar10": lambda: datasets.CIFAR10(data_root, train=train, download=True),
        "cifar100": lambda: datasets.CIFAR100(data_root, train=train, download=True),
        "fashion_mnist": lambda: datasets.FashionMNIST(data_root, train=train, download=True),
        "svhn": lambda: datasets.SVHN(data_root / "svhn", split=part, download=True),
        "stl10": lambda: datasets.STL10(data_root, split=part, download=True),
    }
    source = opened[name]()
    labels = source.labels if name in ("svhn", "stl10") else source.targets
    return _channels_last(np.asarray(source.data), BUILTIN[name].channels), np.asarray(labels, dtype=np.int64)


def _channels_last(images: ByteArray, channels: int) -> ByteArray:
    if images.ndim == 3:
        return images[..., None]
    return images if images.shape[-1] == channels else images.transpose(0, 2, 3, 1)
