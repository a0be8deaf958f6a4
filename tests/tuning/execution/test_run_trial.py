"""What a worker reports of a real trial, without Ray around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.training.module import TrialModule
from tune_rescon.tuning.execution.trial import TrialTask, run_trial

pytestmark = pytest.mark.torch

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def task(tmp_path: Path) -> TrialTask:
    return TrialTask(
        number=7,
        config=TrialConfig(layout="cifar", width=0.25, image_size=16, batch_size=32, crop_padding=1),
        dataset=DatasetConfig(name="digits", limit=80),
        epochs=3,
        seed=0,
        metric="val_accuracy",
        mode="max",
        recorded=0,
        checkpoint_dir=str(tmp_path / "trial"),
        checkpoint_url=None,
        data_root=str(tmp_path),
        cache_root=str(tmp_path / "cache"),
        threads=1,
        device="cpu",
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a task; what it told Tune."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)

    def reported(task: TrialTask) -> list[dict[str, Any]]:
        told.clear()
        run_trial(task.to_dict())
        return list(told)

    return reported


def _epochs(told: list[dict[str, Any]]) -> list[int]:
    return [report["epoch"] for report in told if "epoch" in report]


def test_each_epoch_names_its_device(run: Run, task: TrialTask) -> None:
    assert [report["device"] for report in run(task)] == ["CPU"] * 3


@pytest.mark.parametrize(("recorded", "owed"), [(0, [1, 2, 3]), (1, [2, 3]), (3, [])])
def test_every_epoch_the_record_does_not_hold_is_reported(
    run: Run, task: TrialTask, recorded: int, owed: list[int]
) -> None:
    whole = run(task)
    assert _epochs(whole) == [1, 2, 3]
    again = run(dataclasses.replace(task, recorded=recorded))
    assert _epochs(again) == owed
    untimed = [{**r, "metrics": {**r["metrics"], "epoch_seconds": 0}} for r in (*again, *whole)]
    assert untimed[: len(again)] == untimed[len(again) + recorded :]


def _memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    original = TrialModule.logits

    def logits(self: TrialModule, network: nn.Module, images_BCHW: Tensor) -> Tensor:
        if len(images_BCHW) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, network, images_BCHW)

    monkeypatch.setattr(TrialModule, "logits", logits)


def test_what_the_user_should_know_is_reported_as_a_note(
    run: Run, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 16)
    note, *epochs = run(dataclasses.replace(task, epochs=1))
    assert note == {"number": 7, "note": "ran out of memory at 32 images; going on in 2 micro-batches of 16"}
    assert _epochs(epochs) == [1]


def test_the_nodes_next_trial_does_not_run_out_again(
    run: Run, task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 16)
    run(dataclasses.replace(task, epochs=1))
    second = dataclasses.replace(task, number=8, epochs=1, checkpoint_dir=str(tmp_path / "second"))
    note, *_ = run(second)
    start = "batches of 32 images are too large for the memory, as was found before; 2 micro-batches of 16"
    assert note == {"number": 8, "note": start}


def test_a_memory_too_small_for_any_piece_is_told_apart_from_a_fault(
    run: Run, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 1)
    *notes, end = run(task)
    assert [sorted(note) for note in notes] == [["note", "number"]] * 2
    assert (end["number"], end["state"]) == (7, "out_of_memory")
    assert "OutOfMemoryError" in end["error"]


def test_a_fault_is_reported_with_its_traceback(run: Run, task: TrialTask) -> None:
    (end,) = run(dataclasses.replace(task, metric="val_loss", mode="best"))
    assert (end["number"], end["state"]) == (7, "failed")
    assert "Traceback" in end["error"]
    assert "must be max or min" in end["error"]
