"""Batch sources give the same batches, prefetching uses a thread, and the shards add up to the batch."""

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
from tune_rescon.data.batch_sources import (
    WHOLE,
    BatchSource,
    DeviceSource,
    MemmapSource,
    PrefetchSource,
    Shard,
    prefetched,
)

CPU = torch.device("cpu")


def make_split(images: int) -> Split:
    """Return a split of every second image of a noise cache, in random order."""
    rng = np.random.default_rng(images)
    rows = rng.permutation(2 * images)[:images]
    pixels = rng.integers(0, 256, (2 * images, 4, 4, 3), dtype=np.uint8)
    return Split(images_NHWC=pixels, rows_N=rows, labels_N=rows % 5)


def all_sources(split: Split) -> list[BatchSource]:
    images_NHWC, labels_N = split.gather(np.arange(len(split)))
    resident = DeviceSource(images_NHWC=torch.from_numpy(images_NHWC), labels_N=torch.from_numpy(labels_N))
    return [MemmapSource(split=split), PrefetchSource(split=split, device=CPU), resident]


@given(images=st.integers(1, 40), batch_size=st.integers(1, 50), fraction=st.floats(0, 1))
def test_all_sources_give_the_same_batches(images: int, batch_size: int, fraction: float) -> None:
    split = make_split(images)
    order = np.random.default_rng(1).permutation(images)[: round(fraction * images)]
    images_BHWC, labels_B = split.gather(order)
    for source in all_sources(split):
        assert len(source) == images
        pairs = list(source.batches(order, batch_size))
        assert [len(labels) for _, labels in pairs] == [
            min(batch_size, len(order) - start) for start in range(0, len(order), batch_size)
        ]
        if pairs:
            assert torch.equal(torch.cat([pair[0] for pair in pairs]), torch.from_numpy(images_BHWC))
            assert torch.equal(torch.cat([pair[1] for pair in pairs]), torch.from_numpy(labels_B))


@pytest.mark.parametrize("source", all_sources(make_split(8)), ids=["memmap", "prefetch", "device"])
def test_a_batch_is_a_copy(source: BatchSource) -> None:
    order = np.arange(8)
    first, _ = next(source.batches(order, 4))
    first.zero_()
    second, _ = next(source.batches(order, 4))
    assert second.any()


def batch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def tasks(completed: list[int], *, fails_at: int | None = None) -> Iterator[Callable[[], int]]:
    def make(number: int) -> int:
        if number == fails_at:
            raise OSError("the disk is gone")
        completed.append(number)
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

    prefetcher = prefetched((partial(make, number) for number in range(10)), depth=2)
    assert next(prefetcher) == 0
    assert third.wait(30), "batches are not prefetched"
    assert list(prefetcher) == list(range(1, 10))
    assert {name.startswith("batches") for name in made_by} == {True}
    assert batch_threads() == []


def test_prefetching_is_limited_by_the_depth() -> None:
    completed: list[int] = []
    prefetcher = prefetched(tasks(completed), depth=2)
    for number in range(5):
        assert next(prefetcher) == number
        assert max(completed) <= number + 2
    prefetcher.close()
    assert max(completed) <= 6
    assert batch_threads() == []


def test_an_error_is_raised_at_its_batch_and_ends_the_thread() -> None:
    completed: list[int] = []
    prefetcher = prefetched(tasks(completed, fails_at=3), depth=2)
    assert [next(prefetcher) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(prefetcher)
    assert batch_threads() == []


def test_an_abandoned_pass_leaves_no_thread() -> None:
    iterator = PrefetchSource(split=make_split(40), device=CPU).batches(np.arange(40), 4)
    next(iterator)
    assert len(batch_threads()) == 1
    del iterator
    assert batch_threads() == []


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("images", "batch_size"), [(12, 4), (13, 4), (33, 33), (7, 10), (100, 17), (41, 20)])
def test_shards_of_each_batch_add_up_to_the_batch(images: int, batch_size: int, count: int) -> None:
    order = np.random.default_rng(0).permutation(images)
    shards = [Shard(rank=rank, world_size=count) for rank in range(count)]
    cuts = [shard.select(order, batch_size) for shard in shards]
    for start in range(0, images, batch_size):
        number, batch = start // batch_size, order[start : start + batch_size]
        parts = [own_rows[number * size : (number + 1) * size] for own_rows, size in cuts]
        if len(batch) == min(batch_size, images):
            assert [len(part) for part in parts] == [shard.size(len(batch)) for shard in shards]
        assert np.concatenate(parts).tolist() == batch.tolist()


def test_a_single_process_gets_the_whole_batch() -> None:
    order = np.arange(7)
    own_rows, size = WHOLE.select(order, 3)
    assert own_rows is order
    assert size == 3
