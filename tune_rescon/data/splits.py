"""Split images for training and validation: stratified, seeded, with every class on both sides.

This module only computes on labels; it never opens an image. scikit-learn's stratified splits are unsuitable,
because they neither guarantee that a rare class is on both sides nor give the sizes without a draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tune_rescon.errors import DataError, format_error

__all__ = [
    "SplitPositions",
    "SplitRule",
    "balanced_class_weights",
    "check_counts",
    "draw_subset",
    "held_out_counts",
    "split_sizes",
    "stratified_counts",
    "stratified_split",
    "with_label_noise",
]

IntArray = npt.NDArray[np.int64]

#: Separates these draws from all other uses of the same seed.
_SPLIT_STREAM = 1
_NOISE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """The rule by which training images are limited and held out.

    Attributes:
        limit: Maximum number of images to use, including validation images; None: all.
        val_fraction: Share of the used images that is held out for validation; None: no image is held out.
        seed: Seed of the draw.
    """

    limit: int | None
    val_fraction: float | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class SplitPositions:
    """The positions of two disjoint splits in the source's training images, each ascending."""

    train_N: IntArray
    val_N: IntArray


def stratified_counts(counts: Sequence[int], total: int, *, least: int = 1, leave: int = 0) -> list[int]:
    """Divide ``total`` over classes in proportion to ``counts``, by the method of largest remainders.

    A class gives at least ``least`` images (or all of its images) and at most ``count - leave``. An empty
    class gives none.

    Args:
        counts: Number of images of each class.
        total: Number of images to draw from all classes.
        least: Minimum number of images from each class.
        leave: Number of images to leave in each class.

    >>> stratified_counts([50, 30, 20], 10)
    [5, 3, 2]
    >>> stratified_counts([98, 1, 1], 10)
    [8, 1, 1]
    >>> stratified_counts([4, 2], 5, leave=1)
    Traceback (most recent call last):
    ...
    ValueError: 5 cannot be divided over classes that give at least 2 and at most 4
    """
    held = np.asarray(counts, dtype=np.int64)
    low = np.minimum(held, least)
    high = np.maximum(held - leave, low)
    if not low.sum() <= total <= high.sum():
        raise ValueError(
            f"{total} cannot be divided over classes that give at least {low.sum()} and at most {high.sum()}"
        )
    ideal = held * (total / max(int(held.sum()), 1))
    share = np.clip(np.floor(ideal).astype(np.int64), low, high)
    while share.sum() < total:
        share[np.argmax(np.where(share < high, ideal - share, -np.inf))] += 1
    while share.sum() > total:
        share[np.argmin(np.where(share > low, ideal - share, np.inf))] -= 1
    return [int(value) for value in share]


def split_sizes(images: int, classes: int, rule: SplitRule) -> tuple[int, int]:
    """Return the numbers of training and validation images of :func:`stratified_split`, from totals alone.

    Args:
        images: Number of training images of the source.
        classes: Number of classes.
        rule: The rule of the split.

    >>> split_sizes(50_000, 10, SplitRule(limit=None, val_fraction=0.1, seed=0))
    (45000, 5000)
    >>> split_sizes(50_000, 10, SplitRule(limit=100, val_fraction=0.01, seed=0))
    (90, 10)

    Raises:
        DataError: There are too few images for every class to be on both sides.
    """
    used = images if rule.limit is None else min(rule.limit, images)
    sides = 1 if rule.val_fraction is None else 2
    if used < sides * classes:
        raise DataError(
            format_error(
                f"{classes} classes need at least {sides * classes} training images"
                + (", one of each to train and one to validate" if sides == 2 else ", one of each"),
                got=f"{used}" + (f" (dataset.limit={rule.limit})" if used == rule.limit else ""),
                where="dataset",
            )
        )
    if rule.val_fraction is None:
        return used, 0
    val = min(max(round(rule.val_fraction * used), classes), used - classes)
    return used - val, val


def check_counts(
    counts: Sequence[int], names: Sequence[str], rule: SplitRule, *, tested: bool = False
) -> None:
    """Check that every class has an image for each side.

    Args:
        counts: Number of training images of each class.
        names: Names of the classes.
        rule: The rule of the split.
        tested: True if test images were held out before, which the counts leave out.

    Raises:
        DataError: A class has no training image, or only one although validation images are drawn from them.
    """
    need = 1 if rule.val_fraction is None else 2
    short = [f"{count} of {name!r}" for name, count in zip(names, counts, strict=True) if count < need]
    if short:
        raise DataError(
            format_error(
                f"every class needs at least {need} training images"
                + (", one to train and one to validate" if need == 2 else "")
                + (", besides those that `dataset.test_fraction` holds out" if tested else ""),
                got=", ".join(short[:5]),
                where="dataset",
                hint="Add images" + (", or put a val/ folder beside train/." if need == 2 else "."),
            )
        )


def stratified_split(labels_N: IntArray, classes: int, rule: SplitRule) -> SplitPositions:
    """Draw the training and validation images.

    Each class is shuffled once by (seed, class). A limit selects the head of this order, and validation
    selects the head of that selection. Therefore a larger ``limit`` keeps the images of a smaller one, within
    one image per class.

    Args:
        labels_N: Classes of the source's training images. Each class occurs at least once, or twice if
            validation images are drawn (see :func:`check_counts`).
        classes: Number of classes.
        rule: The rule of the split.

    Raises:
        DataError: There are too few images for every class to be on both sides.
    """
    train, val = split_sizes(len(labels_N), classes, rule)
    orders = _class_orders(labels_N, classes, rule.seed)
    used = stratified_counts([len(order) for order in orders], train + val, least=2 if val else 1)
    held = stratified_counts(used, val, leave=1) if val else [0] * classes
    return SplitPositions(
        train_N=_join(order[h:u] for order, h, u in zip(orders, held, used, strict=True)),
        val_N=_join(order[:h] for order, h in zip(orders, held, strict=True)),
    )


def held_out_counts(counts: Sequence[int], rule: SplitRule) -> list[int]:
    """Return the images of each class that :func:`stratified_split` holds out, from the counts alone.

    >>> held_out_counts([50, 30, 20], SplitRule(limit=None, val_fraction=0.1, seed=0))
    [5, 3, 2]
    """
    return stratified_counts(counts, split_sizes(sum(counts), len(counts), rule)[1], leave=1)


def draw_subset(labels_N: IntArray, classes: int, limit: int | None, seed: int) -> IntArray:
    """Return the positions of at most ``limit`` images, stratified and ascending. A class may be absent.

    Args:
        labels_N: Classes of the images.
        classes: Number of classes.
        limit: Maximum number of images; None: all.
        seed: Seed of the draw.
    """
    if limit is None or limit >= len(labels_N):
        return np.arange(len(labels_N), dtype=np.int64)
    orders = _class_orders(labels_N, classes, seed)
    shares = stratified_counts([len(order) for order in orders], limit)
    return _join(order[:share] for order, share in zip(orders, shares, strict=True))


def with_label_noise(labels_N: IntArray, classes: int, share: float, seed: int) -> IntArray:
    """Return a copy of ``labels_N`` with some labels replaced by another class at random.

    In the paper's table 5, an image keeps its true label with probability ``1 - share``, and all other
    classes are equally probable.

    Args:
        labels_N: Classes of the images.
        classes: Number of classes.
        share: Share of the labels to replace, rounded to whole images.
        seed: Seed of the draw.

    >>> with_label_noise(np.zeros(10, dtype=np.int64), 2, 0.3, seed=0).sum()
    np.int64(3)
    """
    rng = np.random.default_rng((_NOISE_STREAM, seed))
    chosen = rng.choice(len(labels_N), round(share * len(labels_N)), replace=False)
    noisy_N = labels_N.copy()
    noisy_N[chosen] = (noisy_N[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return noisy_N


def balanced_class_weights(labels_N: IntArray, classes: int) -> tuple[float, ...]:
    """Return a weight for each class, inverse to its number of images; the mean over the images is 1.

    These are scikit-learn's weights ``balanced``: N / (K x images of the class). Label noise can leave a
    class without an image; such a class is weighted as one with one image.

    >>> balanced_class_weights(np.array([0, 0, 0, 1]), 2)
    (0.6666666666666666, 2.0)
    """
    counts_K = np.maximum(np.bincount(labels_N, minlength=classes), 1)
    return tuple(float(weight) for weight in len(labels_N) / (classes * counts_K))


def _class_orders(labels_N: IntArray, classes: int, seed: int) -> list[IntArray]:
    """Return the positions of each class, shuffled by (seed, class), so that no class affects another."""
    return [
        np.random.default_rng((_SPLIT_STREAM, seed, label)).permutation(np.flatnonzero(labels_N == label))
        for label in range(classes)
    ]


def _join(parts: Iterable[IntArray]) -> IntArray:
    return np.sort(np.concatenate(list(parts)))
