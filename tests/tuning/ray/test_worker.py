"""The reports of a real trial's worker, without Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training.module import TrialModule
from tune_rescon.tuning.ray.preemption import PreemptionSignal
from tune_rescon.tuning.ray.worker import TrialTask, run_trial

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
        epochs_in_study=0,
        checkpoint_dir=str(tmp_path / "trial"),
        checkpoint_url=None,
        data_root=str(tmp_path),
        cache_root=str(tmp_path / "cache"),
        threads=1,
        device="cpu",
    )


@pytest.fixture
def told() -> list[dict[str, Any]]:
    """What the last task told Tune."""
    return []


@pytest.fixture
def run(told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a task; what it told Tune."""
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


def test_every_trial_of_a_process_trains_on_one_thread(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray runs each on a new one."""
    seen: list[int] = []
    monkeypatch.setattr("ray.tune.report", lambda _: seen.append(threading.get_ident()))
    task = dataclasses.replace(task, epochs=1)
    threads = [threading.Thread(target=run_trial, args=(task.to_dict(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    assert len(set(seen)) == 1


@pytest.mark.parametrize(("recorded", "owed"), [(0, [1, 2, 3]), (1, [2, 3]), (3, [])])
def test_every_epoch_that_the_study_lacks_is_reported(
    run: Run, task: TrialTask, recorded: int, owed: list[int]
) -> None:
    whole = run(task)
    assert _epochs(whole) == [1, 2, 3]
    again = run(dataclasses.replace(task, epochs_in_study=recorded))
    assert _epochs(again) == owed
    untimed = [{**r, "metrics": {**r["metrics"], "epoch_seconds": 0}} for r in (*again, *whole)]
    assert untimed[: len(again)] == untimed[len(again) + recorded :]


@pytest.mark.parametrize("other", ["config", "seed"])
def test_the_epochs_of_another_trials_checkpoint_are_not_reported(
    run: Run, task: TrialTask, other: str
) -> None:
    """A study that was restored from a backup gives a number again, whose folder has a lost trial's files."""
    run(dataclasses.replace(task, epochs=1))
    config = dataclasses.replace(task.config, learning_rate=0.2) if other == "config" else task.config
    seed = task.seed + (other == "seed")
    told = run(dataclasses.replace(task, epochs=1, config=config, seed=seed))
    assert _epochs(told) == []
    assert told[-1]["state"] == "failed"
    assert f"can only resume from its own checkpoint, but got one with another {other}" in told[-1]["error"]


def _memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    original = TrialModule.logits

    def logits(self: TrialModule, network: nn.Module, images_BCHW: Tensor) -> Tensor:
        if len(images_BCHW) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, network, images_BCHW)

    monkeypatch.setattr(TrialModule, "logits", logits)


def test_messages_for_the_user_are_reported_as_notes(
    run: Run, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 16)
    twice, cut, *epochs = run(dataclasses.replace(task, epochs=1))
    assert twice == {
        "number": 7,
        "note": "ran out of memory at 32 images; continuing with activation checkpointing",
    }
    assert cut == {"number": 7, "note": "ran out of memory at 32 images; continuing in 2 micro-batches of 16"}
    assert _epochs(epochs) == [1]


def test_the_next_trial_on_the_node_starts_with_micro_batches_that_fit(
    run: Run, task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 16)
    run(dataclasses.replace(task, epochs=1))
    second = dataclasses.replace(task, number=8, epochs=1, checkpoint_dir=str(tmp_path / "second"))
    note, *_ = run(second)
    start = "batches of 32 images are too large for the memory, as was found before; 2 micro-batches of 16"
    assert note == {"number": 8, "note": start}


def test_out_of_memory_is_reported_as_its_own_state(
    run: Run, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _memory(monkeypatch, 1)
    *notes, end = run(task)
    assert [sorted(note) for note in notes] == [["note", "number"]] * 3, "computed twice, halved, halved"
    assert (end["number"], end["state"]) == (7, "out_of_memory")
    assert "OutOfMemoryError" in end["error"]


class ProcessExit(BaseException):
    """The process has ended."""


@pytest.fixture
def told_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Send this process a SIGTERM in the n-th training step from now; the list gets what steps there are."""
    original, before = TrialModule.training_step, signal.getsignal(signal.SIGTERM)

    def leave(status: int) -> None:
        raise ProcessExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    # Its timer would end the process of the tests.
    monkeypatch.setattr("threading.Timer.start", lambda _: None)

    def at(step: int) -> list[int]:
        notice, steps = PreemptionSignal(), list[int]()
        notice.install()
        monkeypatch.setattr("tune_rescon.tuning.ray.worker.PREEMPTION", notice)

        def training_step(self: TrialModule, batch: tuple[Tensor, Tensor]) -> Tensor:
            steps.append(len(steps) + 1)
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch)

        monkeypatch.setattr(TrialModule, "training_step", training_step)
        return steps

    yield at
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("url", [None, "memory://left/trial_0007"])
def test_a_preempted_trial_resumes_on_another_node(
    url: str | None,
    run: Run,
    told: list[dict[str, Any]],
    told_at: Callable[[int], list[int]],
    task: TrialTask,
    tmp_path: Path,
) -> None:
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, batch_size=16))
    steps = told_at(0)
    whole = run(dataclasses.replace(task, checkpoint_dir=str(tmp_path / "whole")))
    per_epoch = len(steps) // 3

    task = dataclasses.replace(task, checkpoint_url=url)
    told_at(per_epoch + 2)
    with pytest.raises(ProcessExit, match="1"):
        run(dataclasses.replace(task, checkpoint_dir=str(tmp_path / "run" / "trial_0007")))
    first, last = told
    assert first["epoch"] == 1
    note = "its process was asked to end, after 2 batches of epoch 2; another process continues"
    assert last == {"number": 7, "note": note, "preempted": True}

    other = tmp_path / ("other" if url else "run") / "trial_0007"
    steps = told_at(0)
    rest = run(dataclasses.replace(task, epochs_in_study=1, checkpoint_dir=str(other)))
    assert _epochs(rest) == [2, 3]
    assert len(steps) == 2 * per_epoch - 2
    assert [one["metrics"]["val_loss"] for one in (first, *rest)] == [
        one["metrics"]["val_loss"] for one in whole
    ]


def test_a_fault_is_reported_with_its_traceback(run: Run, task: TrialTask) -> None:
    (end,) = run(dataclasses.replace(task, metric="val_loss", mode="best"))
    assert (end["number"], end["state"]) == (7, "failed")
    assert "Traceback" in end["error"]
    assert "must be max or min" in end["error"]


def test_images_that_differ_from_the_searchs_are_reported_as_unusable(run: Run, task: TrialTask) -> None:
    """They changed while the search ran, or this machine has a copy that lacks some."""
    (end,) = run(dataclasses.replace(task, images="0123"))
    assert "every trial of a search must have the images and splits" in end["unusable"]
    assert "other images in digits on " in end["unusable"]
    assert "(train 70, val 10, test 80)" in end["unusable"]
    images = open_dataset(task.dataset, data_root=Path(task.data_root), cache_root=Path(task.cache_root))
    assert _epochs(run(dataclasses.replace(task, images=images.digest))) == [1, 2, 3]


def test_a_missing_gpu_is_reported_as_unusable(
    run: Run, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (end,) = run(dataclasses.replace(task, device="cuda"))
    assert "needs a CUDA GPU that torch can use" in end["unusable"]
    assert "Traceback" not in end["unusable"]
