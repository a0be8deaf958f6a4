"""Arrays of the datasets known by name: scikit-learn's digits, and torchvision's, downloaded if absent.

Shape legend: N images, H = W side, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tune_rescon.data.catalog import BUILTIN
from tune_rescon.data.splits import SplitRule, draw_cut
from tune_rescon.errors import DataError, explain

__all__ = ["load_arrays"]

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Arrays = tuple[ByteArray, IntArray]

#: scikit-learn's digits have no official test part: this one is ours, whatever the split seed.
_DIGITS_TEST: Final = SplitRule(limit=None, val_fraction=0.2, seed=0)
_DIGITS_LEVELS: Final = 16
_DIGITS_SIDE: Final = 8


def load_arrays(name: str, data_root: Path) -> tuple[Arrays, Arrays]:
    """Training and test (images_NHWC, labels_N).

    Raises:
        DataError: absent and not to be downloaded; says which file to put where.
    """
    if name == "digits":
        return _digits()
    try:
        return _torchvision(name, data_root, train=True), _torchvision(name, data_root, train=False)
    except (OSError, RuntimeError, EOFError) as error:
        # torchvision reports a failed download or a file that does not match its checksum in these ways.
        known = BUILTIN[name]
        raise DataError(
            explain(
                f"{name} is not in the data root and could not be downloaded ({_first_line(error)})",
                where="dataset",
                hint=f"Put {' and '.join(known.archives)} into {(data_root / known.folder).resolve()}",
            )
            + " and start again."
        ) from error


def _digits() -> tuple[Arrays, Arrays]:
    # A line is an image's 64 pixels and its label.
    values_NV = np.loadtxt(_digits_file(), delimiter=",")
    pixels_NHW = values_NV[:, :-1].reshape(-1, _DIGITS_SIDE, _DIGITS_SIDE)
    images_NHWC = np.rint(pixels_NHW * (255 / _DIGITS_LEVELS)).astype(np.uint8)[..., None]
    labels_N = values_NV[:, -1].astype(np.int64)
    cut = draw_cut(labels_N, 10, _DIGITS_TEST)
    return (images_NHWC[cut.train_N], labels_N[cut.train_N]), (images_NHWC[cut.val_N], labels_N[cut.val_N])


def _digits_file() -> Path:
    """The file that ``sklearn.datasets.load_digits`` reads; to import scikit-learn takes seconds."""
    package = find_spec("sklearn")
    assert package is not None, "scikit-learn is a dependency"
    assert package.origin is not None, "scikit-learn is an ordinary package"
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _torchvision(name: str, data_root: Path, *, train: bool) -> Arrays:
    # Seconds of torch, paid only while the cache is built.
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
