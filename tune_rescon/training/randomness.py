"""Randomness of a trial: epoch ``e`` depends on (seed, e) alone, so a resumed trial draws what it would have.

Every random number of a network (its first weights, its dropped paths) comes from torch's own generator; the
data module keeps the same rule for order and augmentation. No generator's state has to be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["epoch_seed", "own_generator", "seed_epoch"]

# The data module's streams are 2 and 3: one seed, but no two uses of it alike.
_NETWORK_STREAM = 4


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """64 bits from ``seed`` and ``epoch``: far apart for neighbours, where ``seed + epoch`` would collide.

    >>> len({epoch_seed(seed, epoch) for seed in range(10) for epoch in range(10)})
    100
    >>> epoch_seed(0, 1) == epoch_seed(0, 1, 0), epoch_seed(0, 1) == epoch_seed(0, 1, 1)
    (True, False)
    """
    # numpy seeds (s, e) and (s, e, 0) alike: the first of several processes draws what the only one would.
    return int(np.random.SeedSequence((_NETWORK_STREAM, seed, epoch, rank)).generate_state(1, np.uint64)[0])


def seed_epoch(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed torch, on every device, for ``epoch`` (from 1; 0 is the network's initialisation).

    ``rank``: of a process that trains the trial with others.
    """
    torch.manual_seed(epoch_seed(seed, epoch, rank))


@contextlib.contextmanager
def own_generator(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators, a notebook's say, as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
