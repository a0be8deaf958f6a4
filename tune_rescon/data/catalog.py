"""The available datasets: where they are, and their descriptions (classes, channels, sizes).

A description needs no decoding and no download, except that an archive at a URL is fetched first, once for
each node. It is quick and does not import torch, so that ``--dry-run`` and the driver can describe a dataset
before any worker process starts.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

from filelock import FileLock

from tune_rescon.atomic_write import atomic_write
from tune_rescon.config import DatasetConfig
from tune_rescon.data.decode import common_size, stored_size
from tune_rescon.data.image_folder import list_folder
from tune_rescon.data.selection import Account, Selection
from tune_rescon.data.splits import SplitRule, check_counts, held_out_counts, split_sizes
from tune_rescon.errors import DataError, StorageError, first_line, format_error, unknown_name_message

__all__ = [
    "BUILTIN",
    "BuiltIn",
    "DatasetInfo",
    "dataset_path",
    "describe",
    "fetch_archive",
    "held_out_test_rule",
    "is_url",
    "list_datasets",
    "local_path",
    "split_rule",
    "validation_tests",
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


# fmt: off
_DIGITS: Final = tuple("0123456789")
_CIFAR10: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
_CIFAR100: Final = (
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
_FASHION_MNIST: Final = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
_STL10: Final = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
# fmt: on

BUILTIN: Final[Mapping[str, BuiltIn]] = {
    "digits": BuiltIn(channels=1, image_size=8, train_images=1438, test_images=359, class_names=_DIGITS),
    "cifar10": BuiltIn(
        channels=3,
        image_size=32,
        train_images=50_000,
        test_images=10_000,
        class_names=_CIFAR10,
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
        class_names=_FASHION_MNIST,
        archives=tuple(
            f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
        ),
        folder="FashionMNIST/raw",
    ),
    "stl10": BuiltIn(
        channels=3,
        image_size=96,
        train_images=5_000,
        test_images=8_000,
        class_names=_STL10,
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
        if dataset.path is None:
            return None
        rule, got = "only the dataset `folder` takes a path", f"name={dataset.name}, path={dataset.path}"
        raise DataError(format_error(rule, got=got, where="dataset.path"))
    if dataset.path is None:
        rule = "the dataset `folder` needs a path: a directory of images, or a .zip of one"
        hint = "For example --set dataset.path=photos.zip"
        raise DataError(format_error(rule, where="dataset.path", hint=hint))
    if is_url(dataset.path):
        return fetch_archive(dataset.path, data_root.resolve())
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


#: Keys under which file systems report the version of a file, the most specific first.
_VERSIONS: Final = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "LastModified", "Last-Modified"),
    *("mtime", "last_modified"),
)


def is_url(path: str) -> bool:
    """Return whether a dataset's path is a URL.

    >>> is_url("s3://bucket/photos.zip"), is_url("photos.zip")
    (True, False)
    """
    return "://" in path


#: Keys in the query of a signed URL: CloudFront's, the earlier ones of S3 and Google, Azure's, and tokens.
_SIGNATURES: Final = frozenset(
    {
        *("expires", "signature", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"),
        *("sig", "se", "sp", "st", "sv", "sr", "spr", "skoid", "sktid", "skt", "ske", "sks", "skv"),
        *("token", "access_token"),
    }
)


#: Errors of a write to a full disk, over a quota, or over a limit on the size of files.
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@functools.cache
def fetch_archive(url: str, folder: Path) -> Path:
    """Download the archive at ``url`` to ``folder`` of this node, unless it is there; return its path.

    The version at the URL is requested once per process. Each version is a separate file, so that a process
    that reads an old version can continue.

    Raises:
        DataError: The archive does not exist or cannot be read, or no file system supports the URL's scheme.
        StorageError: ``folder`` cannot be written, or its disk is full.
    """
    # Imported here because most datasets do not need fsspec.
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
        info = filesystem.info(path)
    except Exception as error:  # each file system has its own exceptions, so the set is open
        raise _unreadable(url, error) from error
    # On a web server, the text after a `?` is not part of a file's name. Elsewhere it may be.
    name = PurePosixPath(urlsplit(path).path if is_url(path) else path)
    if info.get("type") == "directory" or name.suffix.lower() != ".zip":
        rule = "a dataset.path that is a URL must be that of a .zip of images"
        raise DataError(format_error(rule, got=url, where="dataset.path"))
    target = folder / f"{name.stem}-{_version(url, info)}{name.suffix}"
    if target.exists():
        return target
    lock = FileLock(folder / f".{target.name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        if not target.exists():
            with atomic_write(target) as scratch:
                filesystem.get_file(path, str(scratch))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise _unwritable(folder, error) from error
        raise _unreadable(url, error) from error
    finally:
        lock.release()
    return target


def _version(url: str, info: dict[str, Any]) -> str:
    """Return a digest of the URL and the file system's ``info``, different for each version of the file."""
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    size = info.get("size")
    # A URL with a new signature is the same file. The signature is ignored only if the server reports a
    # version or a size by which the file can be identified.
    address = _unsigned(url) if version or size is not None else url
    return blake2b(f"{address}\0{size}\0{version}".encode(), digest_size=8).hexdigest()


def _unsigned(url: str) -> str:
    """Return the URL without the part of its query that grants access and limits its duration.

    >>> _unsigned("https://host/a.zip?id=3&X-Amz-Date=20260101&X-Amz-Signature=5e1f")
    'https://host/a.zip?id=3'
    """
    address, _, query = url.partition("?")
    kept = [part for part in query.split("&") if part and not _is_signature(part.partition("=")[0].lower())]
    return f"{address}?{'&'.join(kept)}" if kept else address


def _is_signature(key: str) -> bool:
    return key in _SIGNATURES or key.startswith(("x-amz-", "x-goog-"))


def _unwritable(folder: Path, error: OSError) -> StorageError:
    rule = "the folder for the archives of datasets must be writable"
    return StorageError(format_error(rule, got=f"{error.strerror or error}", where=str(folder)))


def _unreadable(url: str, error: Exception) -> DataError:
    reason = first_line(error)
    hint = (
        "Every node must reach it, with the credentials found there (the machine's role, as usual for s3://);"
        " `pip install 'tune_rescon[s3]'` brings that file system, likewise gcs and azure."
    )
    rule = "dataset.path must be an archive that can be read"
    return DataError(format_error(rule, got=f"{url} ({reason})", where="dataset.path", hint=hint))


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
    builtin = BUILTIN[dataset.name]
    classes = len(builtin.class_names)
    train, val = split_sizes(
        builtin.train_images, classes, split_rule(dataset, own_validation=False, has_test=True)
    )
    return DatasetInfo(
        name=dataset.name,
        classes=classes,
        channels=builtin.channels,
        image_size=builtin.image_size,
        train_images=train,
        val_images=val,
        test_images=_at_most(dataset.limit, builtin.test_images),
        class_names=builtin.class_names,
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
    train, val = split_sizes(sum(counts), classes, rule)
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
