"""All sources give the same batches; batches that are made ahead are made by another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.data import Split
from tune_rescon.data.batch_sources import BatchSource, DeviceSource, MemmapSource, PrefetchSource, prefetched

CPU = torch.device("cpu")


def split_of(images: int) -> Split:
    """Every second image of a cache of noise, in no order."""
    rng = np.random.default_rng(images)
    rows = rng.permutation(2 * images)[:images]
    pixels = rng.integers(0, 256, (2 * images, 4, 4, 3), dtype=np.uint8)
    return Split(images_NHWC=pixels, rows_N=rows, labels_N=rows % 5)


def supplies(split: Split) -> list[BatchSource]:
    images_NHWC, labels_N = split.gather(np.arange(len(split)))
    resident = DeviceSource(images_NHWC=torch.from_numpy(images_NHWC), labels_N=torch.from_numpy(labels_N))
    return [MemmapSource(split=split), PrefetchSource(split=split, device=CPU), resident]


@given(images=st.integers(1, 40), batch_size=st.integers(1, 50), used=st.floats(0, 1))
def test_all_sources_give_the_same_batches(images: int, batch_size: int, used: float) -> None:
    split = split_of(images)
    order = np.random.default_rng(1).permutation(images)[: round(used * images)]
    images_BHWC, labels_B = split.gather(order)
    for supply in supplies(split):
        assert len(supply) == images
        pairs = list(supply.batches(order, batch_size))
        assert [len(labels) for _, labels in pairs] == [
            min(batch_size, len(order) - start) for start in range(0, len(order), batch_size)
        ]
        if pairs:
            assert torch.equal(torch.cat([pair[0] for pair in pairs]), torch.from_numpy(images_BHWC))
            assert torch.equal(torch.cat([pair[1] for pair in pairs]), torch.from_numpy(labels_B))


@pytest.mark.parametrize("supply", supplies(split_of(8)), ids=["mapped", "ahead", "resident"])
def test_a_batch_is_a_copy(supply: BatchSource) -> None:
    order = np.arange(8)
    first, _ = next(supply.batches(order, 4))
    first.zero_()
    again, _ = next(supply.batches(order, 4))
    assert again.any()


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def numbers(made: list[int], *, fails_at: int | None = None) -> Iterator[Callable[[], int]]:
    def make(number: int) -> int:
        if number == fails_at:
            raise OSError("the disk is gone")
        made.append(number)
        return number

    return (partial(make, number) for number in range(10))


def test_next_batches_are_prefetched_by_a_thread() -> None:
    made_by: list[str] = []
    third = threading.Event()

    def make(number: int) -> int:
        made_by.append(threading.current_thread().name)
        if number == 2:
            third.set()
        return number

    ahead = prefetched((partial(make, number) for number in range(10)), depth=2)
    assert next(ahead) == 0
    assert third.wait(30), "nothing is made until it is asked for"
    assert list(ahead) == list(range(1, 10))
    assert {name.startswith("batches") for name in made_by} == {True}
    assert batch_threads() == []


def test_prefetching_is_limited_by_the_depth() -> None:
    made: list[int] = []
    ahead = prefetched(numbers(made), depth=2)
    for asked in range(5):
        assert next(ahead) == asked
        assert max(made) <= asked + 2
    ahead.close()
    assert max(made) <= 6
    assert batch_threads() == []


def test_an_error_is_raised_at_its_batch_and_ends_the_thread() -> None:
    made: list[int] = []
    ahead = prefetched(numbers(made, fails_at=3), depth=2)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert batch_threads() == []


def test_an_abandoned_pass_leaves_no_thread() -> None:
    walk = PrefetchSource(split=split_of(40), device=CPU).batches(np.arange(40), 4)
    next(walk)
    assert len(batch_threads()) == 1
    del walk
    assert batch_threads() == []
