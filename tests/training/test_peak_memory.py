"""A trial's peak memory: measured from its start, kept on a resume, and only where the device counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
from tune_rescon.training.memory import peak_memory_mb, reset_peak_memory

pytestmark = pytest.mark.torch

Train = Callable[..., list[EpochReport]]

CPU = torch.device("cpu")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device that counts its peak memory, which grows by 10 MB at each query. Returns the calls."""
    calls: list[str] = []

    def peak(_device: torch.device) -> float:
        calls.append("peak")
        return 10.0 * calls[::-1].index("begin")

    monkeypatch.setattr(fit, "reset_peak_memory", lambda _device: calls.append("begin"))
    monkeypatch.setattr(epoch_reporter, "peak_memory_mb", peak)
    return calls


def peaks(reports: list[EpochReport]) -> list[float]:
    return [report.metrics[PEAK_MEMORY] for report in reports]


def test_a_cpu_trial_has_no_peak_memory(train: Train) -> None:
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) is None
    assert all(PEAK_MEMORY not in report.metrics for report in train(epochs=1))


def test_the_peak_counts_from_the_start_of_the_trial(train: Train, device: list[str]) -> None:
    for _ in range(2):
        assert peaks(train(epochs=2)) == [10.0, 20.0]
    assert device == ["begin", "peak", "peak"] * 2


def test_a_resumed_trial_keeps_its_earlier_peak(train: Train, device: list[str], tmp_path: Path) -> None:
    def preempt(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, epochs=4, on_epoch=preempt)
    assert peaks(list(epochs_in_checkpoint(tmp_path))) == [10.0, 20.0]
    # The third epoch takes 10 in the new process.
    assert peaks(train(folder=tmp_path, epochs=4)) == [20.0, 20.0]
    assert device.count("begin") == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA counts what tensors hold at most")
def test_the_peak_on_a_gpu_is_that_of_the_current_trial(digits: ImageDataset, small: TrialConfig) -> None:
    def run(width: float) -> float:
        reports: list[EpochReport] = []
        config = TrialConfig.from_dict({**small.to_dict(), "width": width})
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
