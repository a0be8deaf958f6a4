"""The memory of a trial is freed before the next trial of the process starts."""

from __future__ import annotations

import gc
import platform
import threading
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from tune_rescon.training import EpochReport
from tune_rescon.training.memory import release_memory
from tune_rescon.training.module import TrialModule

Train = Callable[..., list[EpochReport]]


@pytest.mark.torch
def test_networks_of_earlier_trials_are_freed_before_one_trains(train: Train) -> None:
    modules: list[int] = []

    def count(_: EpochReport) -> None:
        modules.append(sum(type(instance) is TrialModule for instance in gc.get_objects()))

    gc.disable()  # the time of Python's own collections is not deterministic
    try:
        for _ in range(3):
            train(epochs=1, on_epoch=count)
    finally:
        gc.enable()
    assert modules == [1, 1, 1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system() -> None:
    release_memory()
    process = psutil.Process()
    before = process.memory_info().rss

    def fill() -> None:
        # Blocks too small for mmap: they fill the thread's own heap.
        blocks = [np.ones(8 * 1024) for _ in range(1600)]
        blocks[:-1] = []  # the last block prevents the heap from shrinking by itself
        last_block.append(blocks)

    last_block: list[object] = []
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    release_memory()
    assert process.memory_info().rss - before < 30 * 2**20, "of 100 MiB"
