"""Splits contain every class, have a predictable size, and depend only on the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from tune_rescon.data.splits import (
    SplitRule,
    balanced_class_weights,
    check_counts,
    draw_subset,
    split_sizes,
    stratified_counts,
    stratified_split,
)
from tune_rescon.errors import DataError

COUNTS = st.lists(st.integers(2, 40), min_size=2, max_size=8)


def make_labels(counts: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).permutation(labels)


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], SplitRule]:
    counts = draw(COUNTS)
    limit = draw(st.none() | st.integers(2 * len(counts), sum(counts) + 5))
    return counts, SplitRule(
        limit=limit, val_fraction=draw(st.floats(0.01, 0.99)), seed=draw(st.integers(0, 99))
    )


@given(splits())
def test_splits_are_disjoint_complete_and_contain_every_class(case: tuple[list[int], SplitRule]) -> None:
    counts, rule = case
    labels = make_labels(counts)
    split = stratified_split(labels, len(counts), rule)
    assert not set(split.train_N) & set(split.val_N)
    assert len(split.train_N) + len(split.val_N) == min(rule.limit or len(labels), len(labels))
    for side in (split.train_N, split.val_N):
        assert np.array_equal(side, np.unique(side))
        assert set(labels[side]) == set(range(len(counts)))


@given(splits())
def test_sizes_are_known_before_drawing(case: tuple[list[int], SplitRule]) -> None:
    counts, rule = case
    split = stratified_split(make_labels(counts), len(counts), rule)
    assert (len(split.train_N), len(split.val_N)) == split_sizes(sum(counts), len(counts), rule)


@given(splits())
def test_the_same_seed_gives_the_same_split(case: tuple[list[int], SplitRule]) -> None:
    counts, rule = case
    labels = make_labels(counts)
    first, second = (stratified_split(labels, len(counts), rule) for _ in range(2))
    assert np.array_equal(first.train_N, second.train_N)
    assert np.array_equal(first.val_N, second.val_N)


def test_different_seeds_give_different_splits() -> None:
    labels = make_labels([50, 50])
    splits_drawn = {
        tuple(stratified_split(labels, 2, SplitRule(limit=None, val_fraction=0.2, seed=seed)).val_N)
        for seed in range(5)
    }
    assert len(splits_drawn) == 5


@given(COUNTS, st.data())
def test_stratified_counts_are_proportional(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(counts), sum(counts)))
    shares = stratified_counts(counts, total)
    assert sum(shares) == total
    for share, count in zip(shares, counts, strict=True):
        ideal = total * count / sum(counts)
        assert 1 <= share <= count
        # Small classes are raised to one image, at the cost of at most one image of each other class.
        assert share == 1 or abs(share - ideal) < len(counts)


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("limit", [None, 8, 100])
def test_a_class_of_two_images_has_one_on_each_side(fraction: float, limit: int | None) -> None:
    labels = make_labels([5000, 2, 300, 2])
    split = stratified_split(labels, 4, SplitRule(limit=limit, val_fraction=fraction, seed=0))
    for side in (split.train_N, split.val_N):
        assert np.bincount(labels[side], minlength=4)[[1, 3]].tolist() == [1, 1]
        assert np.bincount(labels[side], minlength=4).min() == 1


@given(COUNTS)
def test_balanced_weights_match_scikit_learn(counts: list[int]) -> None:
    labels = make_labels(counts)
    weights = balanced_class_weights(labels, len(counts))
    assert weights == pytest.approx(
        compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    )
    assert np.asarray(weights)[labels].mean() == pytest.approx(1)


def test_a_class_emptied_by_label_noise_has_a_weight() -> None:
    assert balanced_class_weights(np.array([0, 0, 2]), 3) == pytest.approx((0.5, 1.0, 1.0))


def test_a_balanced_source_is_split_evenly() -> None:
    labels = make_labels([100] * 10)
    split = stratified_split(labels, 10, SplitRule(limit=None, val_fraction=0.1, seed=0))
    assert np.bincount(labels[split.val_N]).tolist() == [10] * 10


def test_raising_the_limit_keeps_the_images() -> None:
    labels = make_labels([60, 60, 60])
    rules = [SplitRule(limit=limit, val_fraction=None, seed=3) for limit in (30, 60, None)]
    small, large, everything = (set(stratified_split(labels, 3, rule).train_N) for rule in rules)
    assert small < large < everything


def test_without_a_validation_fraction_all_images_are_for_training() -> None:
    split = stratified_split(make_labels([3, 1]), 2, SplitRule(limit=None, val_fraction=None, seed=0))
    assert (len(split.train_N), len(split.val_N)) == (4, 0)


@given(st.lists(st.integers(0, 20), min_size=2, max_size=6).filter(any), st.data())
def test_subset_allows_absent_classes(counts: list[int], data: st.DataObject) -> None:
    present = sum(count > 0 for count in counts)
    limit = data.draw(st.integers(present, sum(counts) + 3))
    labels = make_labels(counts)
    rows = draw_subset(labels, len(counts), limit, 0)
    assert len(rows) == len(set(rows)) == min(limit, len(labels))
    assert set(labels[rows]) == set(labels)


@pytest.mark.parametrize(
    ("images", "classes", "rule", "message"),
    [
        (10, 10, SplitRule(limit=None, val_fraction=0.1, seed=0), "at least 20 training images"),
        (100, 10, SplitRule(limit=19, val_fraction=0.1, seed=0), "dataset.limit=19"),
        (100, 10, SplitRule(limit=9, val_fraction=None, seed=0), "at least 10 training images"),
    ],
)
def test_too_few_images_are_reported(images: int, classes: int, rule: SplitRule, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_sizes(images, classes, rule)


@pytest.mark.parametrize(("fraction", "counts"), [(0.5, [5, 1]), (None, [5, 0])])
def test_a_class_too_small_to_split_is_named(fraction: float | None, counts: list[int]) -> None:
    with pytest.raises(DataError, match="'dog'"):
        check_counts(counts, ("cat", "dog"), SplitRule(limit=None, val_fraction=fraction, seed=0))
