"""A trial's peak memory, and the memory that is freed before the next trial of the process."""

from __future__ import annotations

import gc
import platform
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.training.conftest import Train
from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataset
from tune_rescon.metric_names import PEAK_MEMORY
from tune_rescon.training import (
    EpochReport,
    TrialProcess,
    epoch_reporter,
    epochs_in_checkpoint,
    fit,
    train_trial,
)
from tune_rescon.training.memory import peak_memory_mb, release_memory, reset_peak_memory
from tune_rescon.training.module import TrialModule

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device whose peak memory grows by 10 MB at each query. Returns the calls: "reset" or "peak"."""
    calls: list[str] = []

    def peak(_device: torch.device) -> float:
        calls.append("peak")
        return 10.0 * calls[::-1].index("reset")

    monkeypatch.setattr(fit, "reset_peak_memory", lambda _device: calls.append("reset"))
    monkeypatch.setattr(epoch_reporter, "peak_memory_mb", peak)
    return calls


def peaks(reports: list[EpochReport]) -> list[float]:
    return [report.metrics[PEAK_MEMORY] for report in reports]


@pytest.mark.torch
def test_a_cpu_trial_has_no_peak_memory(train: Train) -> None:
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) is None
    assert all(PEAK_MEMORY not in report.metrics for report in train(epochs=1))


@pytest.mark.torch
def test_the_peak_counts_from_the_start_of_the_trial(train: Train, device: list[str]) -> None:
    for _ in range(2):
        assert peaks(train(epochs=2)) == [10.0, 20.0]
    assert device == ["reset", "peak", "peak"] * 2


@pytest.mark.torch
def test_a_resumed_trial_keeps_its_earlier_peak(train: Train, device: list[str], tmp_path: Path) -> None:
    def preempt(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, epochs=4, on_epoch=preempt)
    assert peaks(list(epochs_in_checkpoint(tmp_path))) == [10.0, 20.0]
    # The new process measures 10 in the third epoch.
    assert peaks(train(folder=tmp_path, epochs=4)) == [20.0, 20.0]
    assert device.count("reset") == 2


@pytest.mark.torch
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA measures peak memory")
def test_the_peak_on_a_gpu_is_that_of_the_current_trial(
    digits: ImageDataset, small_attention: TrialConfig
) -> None:
    def run(width: float) -> float:
        reports: list[EpochReport] = []
        config = TrialConfig.from_dict({**small_attention.to_dict(), "width": width})
        train_trial(
            config,
            digits,
            epochs=1,
            seed=0,
            checkpoint_dir=None,
            on_epoch=reports.append,
            process=TrialProcess(device="cuda"),
        )
        return peaks(reports)[0]

    narrow, wide, narrow_again = run(0.25), run(1.0), run(0.25)
    # Weights, gradients, momentum and the average. The peak of the wider trial is not counted again.
    assert 1.0 < narrow < wide
    assert narrow_again == pytest.approx(narrow, rel=0.1)


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
