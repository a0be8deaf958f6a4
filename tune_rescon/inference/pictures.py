"""Pictures of a person's own, as the network was shown its training images.

Shape legend: B images of a batch, H = W the stored side, C the network's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from tune_rescon.command import print_line
from tune_rescon.data import decode_image
from tune_rescon.data.account import Tally, left_out_lines
from tune_rescon.data.decode import BadImageError
from tune_rescon.data.formats import SUFFIXES
from tune_rescon.data.image_tree import find_images
from tune_rescon.data.opening import without_remarks
from tune_rescon.errors import DataError, format_error

if TYPE_CHECKING:
    from tune_rescon.training import TrainedNetwork

__all__ = [
    "Pictures",
    "batches_of",
    "find_pictures",
]


ByteArray = npt.NDArray[np.uint8]

#: Threads that decode; Pillow works beside Python's lock.
_THREADS: Final = 4

_PRINT: Final = partial(print_line, err=True)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch."""

    paths: tuple[Path, ...]
    images_BHWC: ByteArray


def find_pictures(paths: Sequence[Path], *, say: Callable[[str], object] = _PRINT) -> list[Path]:
    """The files, and the pictures in the folders, in order and each once.

    Folders are searched by the rules by which a data set is listed, links followed.

    Args:
        paths: files, which are taken as they are, and folders.
        say: told what is left out of the folders, a line for each kind; on standard error unless given.

    Raises:
        DataError: a path does not exist, a folder cannot be read, or there is no picture at all.
    """
    found: dict[Path, None] = {}
    tally = Tally()
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(find_images(path, tally))
        elif path.exists():
            found[path] = None
        else:
            raise DataError(
                format_error("a picture or a folder of them must exist", got=str(path), where="PATH")
            )
    for line in left_out_lines(tally.left_out()):
        say(line)
    if not found:
        rule = f"there must be pictures ({', '.join(SUFFIXES)})"
        raise DataError(format_error(rule, got="none", where=" ".join(map(str, paths))))
    return list(found)


def batches_of(
    files: Sequence[Path],
    about: TrainedNetwork,
    *,
    batch_size: int,
    on_bad: Callable[[Path, str], object],
) -> Iterator[Pictures]:
    """Decode to the squares that validation starts from: the first step of the network's preprocessing.

    Args:
        files: to be read.
        about: what the network wants.
        batch_size: pictures of a batch, at most.
        on_bad: told of each that is no picture, and why; it is left out.
    """
    with without_remarks(), ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(files), batch_size):
            chosen = files[start : start + batch_size]
            paths, images = [], []
            for path, image in zip(
                chosen, threads.map(lambda path: _decoded(path, about), chosen), strict=True
            ):
                if isinstance(image, str):
                    on_bad(path, image)
                else:
                    paths.append(path)
                    images.append(image)
            if paths:
                yield Pictures(paths=tuple(paths), images_BHWC=np.stack(images))


def _decoded(path: Path, about: TrainedNetwork) -> ByteArray | str:
    """The picture, or what is wrong with it."""
    try:
        how = about.preprocessing
        image_HWC = decode_image(path.read_bytes(), how.stored_side, resize=how.resize, levels=how.levels)
    except (BadImageError, OSError) as error:
        return str(error)
    if about.preprocessing.channel_order == "L":
        return np.asarray(Image.fromarray(image_HWC).convert("L"))[..., None]
    return image_HWC
