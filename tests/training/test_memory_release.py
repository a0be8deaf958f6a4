"""What a trial leaves in its process is gone before the next one needs the room."""

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

Run = Callable[..., list[EpochReport]]


@pytest.mark.torch
def test_networks_of_earlier_trials_are_freed_before_one_trains(train: Run) -> None:
    modules: list[int] = []

    def count(_: EpochReport) -> None:
        modules.append(sum(type(thing) is TrialModule for thing in gc.get_objects()))

    gc.disable()  # A collection of Python's own comes when it likes.
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
        # Pieces too small to be mapped one by one: they make a heap of the thread's own.
        pieces = [np.ones(8 * 1024) for _ in range(1600)]
        pieces[:-1] = []  # The last one keeps the heap from shrinking by itself.
        kept.append(pieces)

    kept: list[object] = []
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    release_memory()
    assert process.memory_info().rss - before < 30 * 2**20, "of 100 MiB"
