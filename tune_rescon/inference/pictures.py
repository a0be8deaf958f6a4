"""Decode a user's pictures as the network's training images were decoded.

Shape legend: B images of a batch, H = W the stored side, C the network's channels.
"""

from __future__ import annotations

import os
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
from tune_rescon.data.decode import BadImageError, is_deep
from tune_rescon.data.image_tree import find_images
from tune_rescon.data.opening import SUFFIXES, ends_in_zeros, open_picture, without_remarks
from tune_rescon.data.selection import Tally, left_out_lines
from tune_rescon.errors import DataError, format_error

if TYPE_CHECKING:
    from tune_rescon.training import TrainedNetwork

__all__ = ["Pictures", "batches_of", "find_pictures"]


ByteArray = npt.NDArray[np.uint8]

#: Number of decoding threads; Pillow releases Python's global interpreter lock while it decodes.
_THREADS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A batch of decoded pictures and their paths."""

    paths: tuple[Path, ...]
    images_BHWC: ByteArray


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the given files and the pictures in the given folders, in order and without duplicates.

    A given file may have any name. Folders are searched like those of a dataset, and links are followed. A
    line for each kind of file that is left out is printed to standard error.

    Raises:
        DataError: A path does not exist, a folder cannot be read, or no picture is found.
    """
    files: dict[Path, None] = {}
    tally = Tally()
    for path in paths:
        # The methods of Path would raise an error for a name that is too long.
        if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir() may raise
            files |= dict.fromkeys(find_images(path, tally))
        elif os.path.exists(path):  # noqa: PTH110 - Path.exists() may raise
            files[path] = None
        else:
            rule = "a picture or a folder of them must exist"
            raise DataError(format_error(rule, got=str(path), where="PATH"))
    for line in left_out_lines(tally.left_out()):
        print_line(line, err=True)
    if not files:
        rule = f"there must be pictures ({', '.join(SUFFIXES)})"
        raise DataError(format_error(rule, got="none", where=" ".join(map(str, paths))))
    return list(files)


def batches_of(
    files: Sequence[Path],
    about: TrainedNetwork,
    *,
    batch_size: int,
    on_bad: Callable[[Path, str], object],
    on_zero_end: Callable[[Path], object] | None = None,
    on_deep: Callable[[Path], object] | None = None,
) -> Iterator[Pictures]:
    """Decode pictures to squares of the stored side, the first step of the preprocessing of validation.

    Args:
        files: The files to decode.
        about: Metadata of the network, with its preprocessing.
        batch_size: Maximum number of pictures of a batch.
        on_bad: Called with the path of each file that cannot be decoded, and the reason. Such a file is left
            out.
        on_zero_end: Called with the path of each picture whose file ends as after an interrupted copy; see
            :func:`tune_rescon.data.opening.ends_in_zeros`.
        on_deep: Called with the path of each picture of more than 8 bits, if the training pictures had 8.
    """
    with without_remarks(), ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            decoded = threads.map(partial(_decoded, about=about), batch)
            paths, images = [], []
            for path, (image, has_zero_end, has_no_levels) in zip(batch, decoded, strict=True):
                if isinstance(image, str):
                    on_bad(path, image)
                    continue
                if has_zero_end and on_zero_end is not None:
                    on_zero_end(path)
                if has_no_levels and on_deep is not None:
                    on_deep(path)
                paths.append(path)
                images.append(image)
            if paths:
                yield Pictures(paths=tuple(paths), images_BHWC=np.stack(images))


def _decoded(path: Path, *, about: TrainedNetwork) -> tuple[ByteArray | str, bool, bool]:
    """Return the decoded picture, or why it cannot be decoded.

    Return also whether its file ends in zeros, and whether it has more than 8 bits while the training
    pictures had 8.
    """
    how = about.preprocessing
    try:
        data = path.read_bytes()
        image_HWC = decode_image(data, how.stored_side, resize=how.resize, levels=how.levels)
    except (BadImageError, OSError) as error:
        return str(error), False, False
    has_no_levels = False
    if how.levels is None:
        with open_picture(data) as opened:
            has_no_levels = is_deep(opened)
    if how.channel_order == "L":
        image_HWC = np.asarray(Image.fromarray(image_HWC).convert("L"))[..., None]
    return image_HWC, ends_in_zeros(data), has_no_levels
