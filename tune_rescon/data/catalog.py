"""The available datasets and their descriptions: classes, channels, sizes.

A description needs no decoding and no download, except that an archive at a URL is fetched first. It is quick
and does not import torch, so that ``--dry-run`` and the driver can describe a dataset before any worker
process starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tune_rescon.config import DatasetConfig
from tune_rescon.data.account import Account
from tune_rescon.data.decode import common_size, stored_size
from tune_rescon.data.downloads import fetched, is_url
from tune_rescon.data.image_folder import list_folder
from tune_rescon.data.selection import Selection
from tune_rescon.data.splits import SplitRule, check_counts, cut_sizes, held_out_counts, stratified_split
from tune_rescon.errors import DataError, format_error, unknown_name_message

__all__ = [
    "BUILTIN",
    "BuiltIn",
    "DatasetInfo",
    "dataset_path",
    "describe",
    "list_datasets",
    "load_arrays",
    "local_path",
    "split_rule",
]


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Description of a dataset that is available before the dataset is opened.

    Attributes:
        image_size: Side of the stored squares, pixels; None for a folder whose images differ in size.
        train_images: Training images after ``limit`` and the validation split.
        val_images: Validation images after ``limit`` and the validation split.
        test_images: Test images after ``limit``; 0 if the source has no test part.
        class_names: Class names in the order of the labels.
        account: Account of what the listing of the folder or zip found and left out; None for a built-in
            dataset.
        stored_side: Side of the squares that the cache stores for a folder, pixels.
        stored_images: Number of images that the cache stores for a folder, over all parts.
        validation_tests: True if the validation images are used as test images because there are no others.
    """

    name: str
    classes: int
    channels: int
    image_size: int | None
    train_images: int
    val_images: int
    test_images: int
    class_names: tuple[str, ...]
    account: Account | None = None
    stored_side: int | None = None
    stored_images: int | None = None
    validation_tests: bool = False

    @property
    def cache_bytes(self) -> int | None:
        """Bytes of the images that the cache stores for a folder; None for a built-in dataset."""
        if self.stored_side is None or self.stored_images is None:
            return None
        return self.stored_images * self.stored_side**2 * self.channels


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A built-in dataset, which is selected by its name alone.

    Attributes:
        archives: Names of the files that an offline user puts into ``<data root>/<folder>``; empty if the
            dataset is embedded.
    """

    channels: int
    image_size: int
    train_images: int
    test_images: int
    class_names: tuple[str, ...]
    archives: tuple[str, ...] = ()
    folder: str = ""


_DIGITS = tuple("0123456789")

# fmt: off
_CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew",
    "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout",
    "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

BUILTIN: Final[Mapping[str, BuiltIn]] = {
    "digits": BuiltIn(
        channels=1,
        image_size=8,
        train_images=1438,
        test_images=359,
        class_names=_DIGITS,
    ),
    "cifar10": BuiltIn(
        channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        class_names=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        archives=("cifar-10-python.tar.gz",),
    ),
    "cifar100": BuiltIn(
        channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        class_names=_CIFAR100,
        archives=("cifar-100-python.tar.gz",),
    ),
    "svhn": BuiltIn(
        channels=3,
        image_size=32,
        train_images=73_257,
        test_images=26_032,
        class_names=_DIGITS,
        archives=("train_32x32.mat", "test_32x32.mat"),
        folder="svhn",
    ),
    "fashion_mnist": BuiltIn(
        channels=1,
        image_size=28,
        train_images=60_000,
        test_images=10_000,
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        archives=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        folder="FashionMNIST/raw",
    ),
    "stl10": BuiltIn(
        channels=3,
        image_size=96,
        train_images=5_000,
        test_images=8_000,
        class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        archives=("stl10_binary.tar.gz",),
    ),
}


def list_datasets() -> tuple[str, ...]:
    """Return the valid values of ``dataset.name`` in a space file."""
    return (*BUILTIN, "folder")


def describe(dataset: DatasetConfig, *, data_root: Path) -> DatasetInfo:
    """Describe a dataset from constants, or from one listing of the folder or zip, without decoding.

    Nothing is downloaded either, except that an archive at a URL is fetched to ``data_root`` first. The
    counts include images that later turn out to be broken.

    Raises:
        DataError: The name is unknown, or the listing shows a fault of the folder.
    """
    path = dataset_path(dataset, data_root)
    return _describe_builtin(dataset) if path is None else _describe_folder(dataset, path)


def dataset_path(dataset: DatasetConfig, data_root: Path) -> Path | None:
    """Return the absolute path of the folder or .zip, or None for a built-in dataset.

    A .zip at a URL is fetched first.

    Raises:
        DataError: The name is unknown, or ``path`` is missing, given for a built-in dataset, or cannot be
            fetched.
    """
    if dataset.name not in list_datasets():
        raise DataError(unknown_name_message("dataset", dataset.name, list_datasets(), where="dataset.name"))
    if dataset.name != "folder":
        if dataset.path is not None:
            raise DataError(
                format_error(
                    "only the dataset `folder` takes a path",
                    got=f"name={dataset.name}, path={dataset.path}",
                    where="dataset.path",
                )
            )
        return None
    if dataset.path is None:
        raise DataError(
            format_error(
                "the dataset `folder` needs a path: a directory of images, or a .zip of one",
                where="dataset.path",
                hint="For example --set dataset.path=photos.zip",
            )
        )
    if is_url(dataset.path):
        return fetched(dataset.path, data_root.resolve())
    return local_path(dataset.path)


def local_path(path: str) -> Path:
    """Return a user's ``path`` as an absolute path on this machine, with ``~`` as the home folder.

    Raises:
        DataError: The path begins with ``~NAME``, and this machine has no such user.
    """
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError as error:
        rule = "dataset.path must begin with a user's home folder that this machine has"
        hint = "A folder of such a name is given as ./~NAME."
        raise DataError(format_error(rule, got=path, where="dataset.path", hint=hint)) from error


def split_rule(dataset: DatasetConfig, *, own_validation: bool, has_test: bool) -> SplitRule:
    """Return the rule that splits the dataset's training images.

    Args:
        dataset: The dataset's configuration.
        own_validation: True if the source has a validation part, which is then used as it is.
        has_test: True if the dataset has test images.
    """
    holds_out = dataset.hold_out or validation_tests(dataset, has_test=has_test)
    return SplitRule(
        limit=dataset.limit,
        val_fraction=dataset.val_fraction if holds_out and not own_validation else None,
        seed=dataset.split_seed,
    )


def held_out_test_rule(dataset: DatasetConfig, *, has_test: bool) -> SplitRule | None:
    """Return the rule that draws test images from the training images, or None if none are drawn.

    The test images are the validation part of this rule.
    """
    if has_test or dataset.test_fraction is None:
        return None
    return SplitRule(limit=None, val_fraction=dataset.test_fraction, seed=dataset.split_seed)


def validation_tests(dataset: DatasetConfig, *, has_test: bool) -> bool:
    """Return whether the validation images are used as test images."""
    return not (dataset.hold_out or has_test) and dataset.without_test == "val"


def _describe_builtin(dataset: DatasetConfig) -> DatasetInfo:
    known = BUILTIN[dataset.name]
    classes = len(known.class_names)
    train, val = cut_sizes(
        known.train_images, classes, split_rule(dataset, own_validation=False, has_test=True)
    )
    return DatasetInfo(
        name=dataset.name,
        classes=classes,
        channels=known.channels,
        image_size=known.image_size,
        train_images=train,
        val_images=val,
        test_images=_at_most(dataset.limit, known.test_images),
        class_names=known.class_names,
    )


def _describe_folder(dataset: DatasetConfig, path: Path) -> DatasetInfo:
    listing = list_folder(path, Selection.of(dataset))
    classes = len(listing.class_names)
    counts, test = listing.train.counts(classes), len(listing.test.names)
    drawn = held_out_test_rule(dataset, has_test=bool(test))
    if drawn is not None:
        check_counts(counts, listing.class_names, drawn)
        held = held_out_counts(counts, drawn)
        counts, test = [count - out for count, out in zip(counts, held, strict=True)], sum(held)
    rule = split_rule(dataset, own_validation=bool(listing.val.names), has_test=bool(test))
    check_counts(counts, listing.class_names, rule, tested=drawn is not None)
    train, val = cut_sizes(sum(counts), classes, rule)
    val = val or _at_most(dataset.limit, len(listing.val.names))
    stands_in = validation_tests(dataset, has_test=bool(test))
    common = common_size(path, listing.names)
    side, _ = stored_size(common, dataset.store_size, dataset.resize)
    return DatasetInfo(
        name=dataset.name,
        classes=classes,
        channels=3,
        image_size=side if common or dataset.store_size else None,
        train_images=train if dataset.hold_out or stands_in else train + val,
        val_images=val if dataset.hold_out else 0,
        test_images=val if stands_in else _at_most(dataset.limit, test),
        class_names=listing.class_names,
        account=listing.account,
        stored_side=side,
        stored_images=len(listing.names),
        validation_tests=stands_in,
    )


def _at_most(limit: int | None, images: int) -> int:
    return images if limit is None else min(limit, images)


ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Arrays = tuple[ByteArray, IntArray]

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
        # torchvision reports a failed download or a file that does not match its checksum in these ways.
        known = BUILTIN[name]
        raise DataError(
            format_error(
                f"{name} is not in the data root and could not be downloaded ({_first_line(error)})",
                where="dataset",
                hint=f"Put {' and '.join(known.archives)} into {(data_root / known.folder).resolve()}",
            )
            + " and start again."
        ) from error


def _digits() -> tuple[Arrays, Arrays]:
    # Each line holds the 64 pixels of an image and its label.
    values_NV = np.loadtxt(_digits_file(), delimiter=",")
    pixels_NHW = values_NV[:, :-1].reshape(-1, _DIGITS_SIDE, _DIGITS_SIDE)
    images_NHWC = np.rint(pixels_NHW * (255 / _DIGITS_LEVELS)).astype(np.uint8)[..., None]
    labels_N = values_NV[:, -1].astype(np.int64)
    cut = stratified_split(labels_N, 10, _DIGITS_TEST)
    return (images_NHWC[cut.train_N], labels_N[cut.train_N]), (images_NHWC[cut.val_N], labels_N[cut.val_N])


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


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
