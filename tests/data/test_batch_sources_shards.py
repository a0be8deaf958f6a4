"""The shares of a batch: disjoint, and together the batch, for odd sizes too."""

from __future__ import annotations

import numpy as np
import pytest

from tune_rescon.data.batch_sources import WHOLE, Shard


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("images", "batch_size"), [(12, 4), (13, 4), (33, 33), (7, 10), (100, 17), (41, 20)])
def test_shards_of_each_batch_add_up_to_the_batch(images: int, batch_size: int, count: int) -> None:
    order = np.random.default_rng(0).permutation(images)
    shares = [Shard(rank=rank, count=count) for rank in range(count)]
    cuts = [share.cut(order, batch_size) for share in shares]
    for start in range(0, images, batch_size):
        number, batch = start // batch_size, order[start : start + batch_size]
        parts = [mine[number * size : (number + 1) * size] for mine, size in cuts]
        if len(batch) == min(batch_size, images):
            assert [len(part) for part in parts] == [share.of(len(batch)) for share in shares]
        assert np.concatenate(parts).tolist() == batch.tolist()


def test_a_single_process_gets_the_whole_batch() -> None:
    order = np.arange(7)
    mine, size = WHOLE.cut(order, 3)
    assert mine is order
    assert size == 3
