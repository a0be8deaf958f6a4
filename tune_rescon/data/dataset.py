"""An open dataset: memory-mapped images and their training, validation and test splits.

Shape legend: N images of the cache or of a split, B images of a batch, H = W stored side, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data.cache import Cache
from tune_rescon.data.cache_builder import Progress, open_or_build_cache
from tune_rescon.data.catalog import held_out_test_rule, split_rule, validation_tests
from tune_rescon.data.selection import PARTS, as_text
from tune_rescon.data.sources import find_source
from tune_rescon.data.splits import check_counts, draw_subset, stratified_split, with_label_noise
from tune_rescon.errors import DataError, counted, format_error

if TYPE_CHECKING:
    from tune_rescon.data.preprocessing import Preprocessing

__all__ = ["ImageDataset", "Split", "open_dataset"]

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Some images of a cache. Reading is thread-safe.

    Attributes:
        images_NHWC: All images of the cache, mapped read-only and shared with other splits and processes.
        rows_N: Rows of ``images_NHWC`` that belong to this split.
        labels_N: Classes of these rows.
    """

    images_NHWC: ByteArray
    rows_N: IntArray
    labels_N: IntArray

    def __len__(self) -> int:
        """Return the number of images of this split."""
        return len(self.rows_N)

    def gather(self, positions_B: IntArray) -> tuple[ByteArray, IntArray]:
        """Return copies of the images at these positions of the split, and their labels."""
        return self.images_NHWC[self.rows_N[positions_B]], self.labels_N[positions_B]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """The training and validation splits, and the test split, which is evaluated once at the end.

    Attributes:
        test: The test split; empty if the source has no test part. A search never reads it.
        mean: Mean of each channel over all training images of the source, in 0..1.
        std: Standard deviation of each channel over all training images of the source, in 0..1.
        resize: The method by which pictures became squares.
        levels: Values that became 0 and 255 in pictures of more than 8 bits; None without such pictures.
        interpolation: How squares become a network's input.
        digest: Equal if the images, labels and splits are equal, on every node and at every path.
        repeats: Lines for the user about pictures that are in two splits or in two classes, because the
            metrics are then too good.
        broken: The part, class and name of each image that cannot be decoded, which are in no split.
        zero_ends: Names of the pictures whose file ends as after an interrupted copy; see
            :func:`tune_rescon.data.opening.ends_in_zeros`.
    """

    train: Split
    val: Split
    test: Split
    classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    digest: str
    resize: str = "crop"
    levels: tuple[float, float] | None = None
    interpolation: str = "bilinear"
    repeats: tuple[str, ...] = ()
    broken: tuple[tuple[str, int, str], ...] = ()
    zero_ends: tuple[str, ...] = ()

    @property
    def stored_side(self) -> int:
        """Side of the squares in the cache, pixels."""
        side: int = self.train.images_NHWC.shape[1]
        return side

    def preprocessing(self, config: TrialConfig, image_size: int) -> Preprocessing:
        """Return this dataset's preprocessing for a network with inputs of ``image_size`` pixels a side."""
        # Imported here because it imports torch, which the driver does not need.
        from tune_rescon.data.preprocessing import Preprocessing

        return Preprocessing.of(self, image_size=image_size, normalize=config.normalize)


def open_dataset(
    dataset: DatasetConfig, *, data_root: Path, cache_root: Path, progress: Progress = False
) -> ImageDataset:
    """Open a dataset. If this node has no cache of it, decode it first, after a download if necessary.

    Limits and splits are indexes into one cache, so that all settings of them share the cache.

    Args:
        dataset: Name of the dataset and settings of its splits.
        data_root: Folder with the archives of built-in datasets, and the target of downloads.
        cache_root: Folder on a local disk for this node's decoded images.
        progress: See :data:`tune_rescon.data.cache_builder.Progress`.

    Raises:
        DataError: The dataset is unknown, missing or broken, cannot be downloaded, or has too few images for
            its splits.
        StorageError: The cache cannot be written.
    """
    source = find_source(dataset, data_root)
    cache = open_or_build_cache(
        source, cache_root, skip_bad=dataset.on_bad_image == "skip", progress=progress
    )
    classes = len(cache.meta.class_names)
    parts = _part_rows(cache)
    rows = _with_test(parts, cache, dataset)
    has_test = bool(len(rows["test"]))
    rule = split_rule(dataset, own_validation=bool(len(rows["val"])), has_test=has_test)
    train_labels_N = cache.labels_N[rows["train"]]
    counts = np.bincount(train_labels_N, minlength=classes).tolist()
    check_counts(counts, cache.meta.class_names, rule, tested=len(rows["train"]) < len(parts["train"]))
    split = stratified_split(train_labels_N, classes, rule)
    held_out = {
        part: rows[part][draw_subset(cache.labels_N[rows[part]], classes, dataset.limit, dataset.split_seed)]
        for part in ("val", "test")
    }
    chosen = {
        "train": rows["train"][split.train_N],
        "val": held_out["val"] if len(rows["val"]) else rows["train"][split.val_N],
        "test": held_out["test"],
    }
    if validation_tests(dataset, has_test=has_test):
        chosen |= {"val": chosen["val"][:0], "test": chosen["val"]}
    elif not dataset.hold_out:
        chosen |= {"train": np.union1d(chosen["train"], chosen["val"]), "val": chosen["val"][:0]}
    splits = {part: _split(cache, chosen[part]) for part in PARTS}
    return ImageDataset(
        train=_noisy(splits["train"], classes, dataset),
        val=splits["val"],
        test=splits["test"],
        classes=classes,
        channels=cache.meta.shape[-1],
        mean=cache.meta.mean,
        std=cache.meta.std,
        class_names=cache.meta.class_names,
        digest=_digest(cache.meta.content, [chosen[part] for part in PARTS], dataset),
        resize=dataset.resize,
        levels=cache.meta.levels,
        repeats=tuple(_repeat_lines(cache, chosen)),
        broken=tuple(_broken(cache)),
        zero_ends=cache.meta.zero_ends,
    )


def _broken(cache: Cache) -> Iterator[tuple[str, int, str]]:
    ends = np.cumsum([cache.meta.counts[part] for part in PARTS])
    for row, name, _ in cache.meta.skipped:
        yield PARTS[np.searchsorted(ends, row, side="right")], int(cache.labels_N[row]), name


def _repeat_lines(cache: Cache, chosen: Mapping[str, IntArray]) -> Iterator[str]:
    """Yield a line for each held-out split with copies of training images, and for copies in two classes."""
    part_of = {int(row): part for part in PARTS for row in chosen[part]}
    names: dict[int, str] = {}
    groups: dict[int, list[int]] = {}
    for row, name, first, first_name in cache.meta.repeats:
        names |= {row: name, first: first_name}
        groups.setdefault(first, [first]).append(row)
    used = [[row for row in group if row in part_of] for group in groups.values()]

    def example(row: int, other: int) -> str:
        return f"{as_text(names[row])} is {as_text(names[other])}"

    for part, title in (("val", "validation"), ("test", "test")):
        copies = [
            (row, trained[0])
            for group in used
            if (trained := [row for row in group if part_of[row] == "train"])
            for row in group
            if part_of[row] == part
        ]
        if copies:
            yield (
                f"{len(copies)} of the {counted(len(chosen[part]), f'{title} image')} are copies of training"
                f" images ({example(*copies[0])}), so that values on them are too good; remove the copies, or"
                " leave them out with dataset.ignore"
            )
    apart = [
        (group[0], other)
        for group in used
        if (other := next((r for r in group if cache.labels_N[r] != cache.labels_N[group[0]]), None))
    ]
    if apart:
        yield (
            f"{counted(len(apart), 'picture')} in more than one class ({example(*apart[0])}); an image has"
            " one class here"
        )


def _with_test(rows: dict[str, IntArray], cache: Cache, dataset: DatasetConfig) -> dict[str, IntArray]:
    """Return the rows of each part; draw test images from the training images if so configured."""
    rule = held_out_test_rule(dataset, has_test=bool(len(rows["test"])))
    if rule is None:
        return rows
    labels_N, names = cache.labels_N[rows["train"]], cache.meta.class_names
    check_counts(np.bincount(labels_N, minlength=len(names)).tolist(), names, rule)
    split = stratified_split(labels_N, len(names), rule)
    return {**rows, "train": rows["train"][split.train_N], "test": rows["train"][split.val_N]}


def _part_rows(cache: Cache) -> dict[str, IntArray]:
    """Return the rows of each part of the source, without rows of skipped images.

    Raises:
        DataError: All images of a part are skipped. Others would take its place without a word.
    """
    ends = np.cumsum([cache.meta.counts[part] for part in PARTS])
    skipped = [row for row, *_ in cache.meta.skipped]
    whole = np.split(np.arange(ends[-1], dtype=np.int64), ends[:-1])
    found = {part: np.setdiff1d(rows, skipped) for part, rows in zip(PARTS, whole, strict=True)}
    for part, title in (("val", "validation"), ("test", "test")):
        if cache.meta.counts[part] and not len(found[part]):
            rule = f"at least one {title} image must be whole"
            got = counted(cache.meta.counts[part], "broken one")
            hint = "Repair them, or remove the folder of this part."
            raise DataError(format_error(rule, got=got, where="dataset", hint=hint))
    return found


def _split(cache: Cache, rows_N: IntArray) -> Split:
    return Split(images_NHWC=cache.images_NHWC, rows_N=rows_N, labels_N=cache.labels_N[rows_N])


def _noisy(train: Split, classes: int, dataset: DatasetConfig) -> Split:
    """Return the training split, with label noise if so configured."""
    if not dataset.label_noise:
        return train
    labels_N = with_label_noise(train.labels_N, classes, dataset.label_noise, dataset.split_seed)
    return replace(train, labels_N=labels_N)


def _digest(content: str, rows: Sequence[IntArray], dataset: DatasetConfig) -> str:
    """Return the digest of an open dataset.

    Label noise enters the digest only if it is on, so that training from before the setting existed can
    continue.
    """
    state = blake2b(content.encode(), digest_size=16)
    for rows_N in rows:
        state.update(len(rows_N).to_bytes(8, "little") + rows_N.tobytes())
    if dataset.label_noise:
        state.update(repr((dataset.label_noise, dataset.split_seed)).encode())
    return state.hexdigest()
