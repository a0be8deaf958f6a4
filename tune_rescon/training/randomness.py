"""Randomness of a trial: epoch ``e`` depends on (seed, e) alone, so a resumed trial draws what it would have.

Every random number of a network (its first weights, its dropped paths) comes from torch's own generator; the
data module keeps the same rule for order and augmentation. How much of an epoch has been drawn is in the
states of torch's generators, which go with every checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

__all__ = ["epoch_seed", "generator_states", "own_generator", "restore_generators", "seed_epoch"]

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


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """Where the generators are that a network on ``device`` draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_generators(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Back from :func:`generator_states`. Who goes on on another kind of device draws other numbers there."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def own_generator(device: torch.device) -> Iterator[None]:
    """Leave the caller's generators, a notebook's say, as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
