"""The GPU utilisation that a trial records, with a fake for the function that reads it."""

from __future__ import annotations

import itertools
import math
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.waiting import LONGEST_WAIT
from tune_rescon.metric_names import GPU_METRICS, GPU_UTILISATION
from tune_rescon.training import epoch_reporter
from tune_rescon.training.epoch_reporter import nvml_reading, sampled_utilisation

if TYPE_CHECKING:
    from tests.training.conftest import Train

CPU = torch.device("cpu")


def test_a_thread_reads_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_reporter, "PERIOD", 0.001)
    third, count = threading.Event(), itertools.count(1)

    def read() -> float:
        if next(count) == 3:
            third.set()
        return 0.5

    with sampled_utilisation(CPU, read) as mean:
        assert third.wait(LONGEST_WAIT)
    read_by_then = next(count)
    assert mean is not None
    assert mean() == 0.5
    assert next(count) == read_by_then + 1, "the thread continues to read"


def test_the_mean_is_of_the_readings_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch_reporter, "PERIOD", 0.001)
    first, third, go = iter((0.5, 1.0)), threading.Event(), threading.Event()

    def read() -> float:
        if (reading := next(first, None)) is not None:
            return reading
        third.set()
        assert go.wait(LONGEST_WAIT)
        return 0.25

    with sampled_utilisation(CPU, read) as mean:
        assert mean is not None
        assert third.wait(LONGEST_WAIT), "the first two readings are not counted again"
        assert mean() == 0.75
        assert math.isnan(mean())
        go.set()
    assert mean() == 0.25


def test_a_failed_reading_ends_only_the_sampling(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_reporter, "PERIOD", 0.001)
    failed = threading.Event()

    def read() -> float:
        failed.set()
        raise RuntimeError("GPU is lost")

    with sampled_utilisation(CPU, read) as mean:
        assert failed.wait(LONGEST_WAIT)
    assert mean is not None
    assert math.isnan(mean())
    assert "no longer recorded: GPU is lost" in caplog.text


def test_without_a_gpu_no_thread_is_started() -> None:
    before = threading.active_count()
    with sampled_utilisation(CPU, None) as mean:
        assert mean is None
        assert threading.active_count() == before


def test_a_gpu_that_cannot_be_read_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_missing(_: torch.device) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", raise_missing)
    with sampled_utilisation(torch.device("cuda"), None) as mean:
        assert mean is not None
        assert math.isnan(mean())


def test_nvml_percentages_become_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 95)
    read = nvml_reading(torch.device("cuda"))
    assert read is not None
    assert read() == 0.95


@pytest.mark.torch
def test_a_trial_reports_utilisation_and_seconds_by_cause(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(epoch_reporter, "PERIOD", 0.01)
    reports = train(folder=tmp_path, epochs=3, gpu_reading=lambda: 0.75)
    first, second, _ = (report.metrics for report in reports)
    assert first[GPU_UTILISATION] == second[GPU_UTILISATION] == 0.75
    causes = ("first_step_seconds", "validation_seconds", "checkpoint_seconds")
    assert all(first[cause] > 0 for cause in causes)
    assert sum(first[cause] for cause in causes) < first["epoch_seconds"]
    assert "first_step_seconds" not in second
    assert second["validation_seconds"] + second["checkpoint_seconds"] < second["epoch_seconds"]


@pytest.mark.torch
def test_a_cpu_trial_reports_no_gpu_metrics(train: Train) -> None:
    assert not set(train(epochs=1)[0].metrics) & set(GPU_METRICS)
