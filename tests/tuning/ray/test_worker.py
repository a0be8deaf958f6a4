"""A trial's worker without Ray: its reports, and how it ends with its peers."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from torch import Tensor, nn

from tests.waiting import wait_until
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training.distributed import PeerFailedError
from tune_rescon.training.module import TrialModule
from tune_rescon.tuning.ray import multi_process
from tune_rescon.tuning.ray.preemption import PreemptionSignal
from tune_rescon.tuning.ray.worker import TrialTask, run_trial

pytestmark = pytest.mark.torch

RunTask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def task(tmp_path: Path) -> TrialTask:
    return TrialTask(
        number=7,
        config=TrialConfig(network="tests.own_networks:small", image_size=16, batch_size=32, crop_padding=1),
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
def attention_task(task: TrialTask) -> TrialTask:
    """A task whose network can recompute its activations."""
    config = TrialConfig(layout="cifar", width=0.125, image_size=16, batch_size=32, crop_padding=1)
    return dataclasses.replace(task, config=config)


@pytest.fixture
def tune_reports() -> list[dict[str, Any]]:
    """The reports of the last task to Tune."""
    return []


@pytest.fixture
def run(tune_reports: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> RunTask:
    """Runs a task and returns its reports to Tune."""
    monkeypatch.setattr("ray.tune.report", tune_reports.append)

    def run_task(task: TrialTask) -> list[dict[str, Any]]:
        tune_reports.clear()
        run_trial(task.to_dict())
        return list(tune_reports)

    return run_task


def reported_epochs(tune_reports: list[dict[str, Any]]) -> list[int]:
    return [report["epoch"] for report in tune_reports if "epoch" in report]


def test_each_epoch_names_its_device(run: RunTask, task: TrialTask) -> None:
    assert [report["device"] for report in run(task)] == ["CPU"] * 3


def test_every_trial_of_a_process_trains_on_one_thread(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray runs each trial on a new thread."""
    thread_ids: list[int] = []
    monkeypatch.setattr("ray.tune.report", lambda _: thread_ids.append(threading.get_ident()))
    task = dataclasses.replace(task, epochs=1)
    threads = [threading.Thread(target=run_trial, args=(task.to_dict(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(thread_ids) == 2
    assert len(set(thread_ids)) == 1


@pytest.mark.parametrize(("recorded", "missing"), [(0, [1, 2, 3]), (1, [2, 3]), (3, [])])
def test_every_epoch_that_the_study_lacks_is_reported(
    run: RunTask, task: TrialTask, recorded: int, missing: list[int]
) -> None:
    all_reports = run(task)
    assert reported_epochs(all_reports) == [1, 2, 3]
    resumed_reports = run(dataclasses.replace(task, epochs_in_study=recorded))
    assert reported_epochs(resumed_reports) == missing
    untimed = [
        {**report, "metrics": {**report["metrics"], "epoch_seconds": 0}}
        for report in (*resumed_reports, *all_reports)
    ]
    assert untimed[: len(resumed_reports)] == untimed[len(resumed_reports) + recorded :]


@pytest.mark.parametrize("difference", ["config", "seed"])
def test_the_epochs_of_another_trials_checkpoint_are_not_reported(
    run: RunTask, task: TrialTask, difference: str
) -> None:
    """A study that was restored from a backup reuses a number, whose folder has a lost trial's files."""
    run(dataclasses.replace(task, epochs=1))
    config = dataclasses.replace(task.config, learning_rate=0.2) if difference == "config" else task.config
    seed = task.seed + (difference == "seed")
    tune_reports = run(dataclasses.replace(task, epochs=1, config=config, seed=seed))
    assert reported_epochs(tune_reports) == []
    assert tune_reports[-1]["state"] == "failed"
    assert (
        f"can only resume from its own checkpoint, but got one with another {difference}"
        in tune_reports[-1]["error"]
    )


def limit_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    original = TrialModule.logits

    def logits(self: TrialModule, network: nn.Module, images_BCHW: Tensor) -> Tensor:
        if len(images_BCHW) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, network, images_BCHW)

    monkeypatch.setattr(TrialModule, "logits", logits)


def test_messages_for_the_user_are_reported_as_notes(
    run: RunTask, attention_task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 16)
    checkpointing_note, split_note, *epochs = run(dataclasses.replace(attention_task, epochs=1))
    assert checkpointing_note == {
        "number": 7,
        "note": "ran out of memory at 32 images; continuing with activation checkpointing",
    }
    assert split_note == {
        "number": 7,
        "note": "ran out of memory at 32 images; continuing in 2 micro-batches of 16",
    }
    assert reported_epochs(epochs) == [1]


def test_the_next_trial_on_the_node_starts_with_micro_batches_that_fit(
    run: RunTask, attention_task: TrialTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 16)
    run(dataclasses.replace(attention_task, epochs=1))
    second = dataclasses.replace(attention_task, number=8, epochs=1, checkpoint_dir=str(tmp_path / "second"))
    note, *_ = run(second)
    start = "batches of 32 images are too large for the memory, as was found before; 2 micro-batches of 16"
    assert note == {"number": 8, "note": start}


def test_out_of_memory_is_reported_as_its_own_state(
    run: RunTask, attention_task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 1)
    *notes, end = run(attention_task)
    assert [sorted(note) for note in notes] == [["note", "number"]] * 3, (
        "activation checkpointing, then two splits"
    )
    assert (end["number"], end["state"]) == (7, "out_of_memory")
    assert "OutOfMemoryError" in end["error"]


class ProcessExit(BaseException):
    """Raised instead of the end of the process."""


@pytest.fixture
def preempt_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[int]]]:
    """Sends this process a SIGTERM in the n-th training step from now; returns the list of steps."""
    original, before = TrialModule.training_step, signal.getsignal(signal.SIGTERM)

    def raise_exit(status: int) -> None:
        raise ProcessExit(status)

    monkeypatch.setattr(os, "_exit", raise_exit)
    # The timer of the signal would end the test process.
    monkeypatch.setattr("threading.Timer.start", lambda _: None)

    def install_at(step: int) -> list[int]:
        notice, steps, received = PreemptionSignal(), list[int](), threading.Event()
        notice.install()
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)

        def receive(number: int, frame: FrameType | None) -> None:
            handler(number, frame)
            received.set()

        signal.signal(signal.SIGTERM, receive)
        monkeypatch.setattr("tune_rescon.tuning.ray.worker.PREEMPTION", notice)

        def training_step(self: TrialModule, batch: tuple[Tensor, Tensor]) -> Tensor:
            steps.append(len(steps) + 1)
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGTERM)
                # The main thread receives it. This thread might have trained the next batch by then.
                wait_until(received.is_set)
            return original(self, batch)

        monkeypatch.setattr(TrialModule, "training_step", training_step)
        return steps

    yield install_at
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("url", [None, "memory://left/trial_0007"])
def test_a_preempted_trial_resumes_on_another_node(
    url: str | None,
    run: RunTask,
    tune_reports: list[dict[str, Any]],
    preempt_at: Callable[[int], list[int]],
    task: TrialTask,
    tmp_path: Path,
) -> None:
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, batch_size=16))
    steps = preempt_at(0)
    all_reports = run(dataclasses.replace(task, checkpoint_dir=str(tmp_path / "whole")))
    per_epoch = len(steps) // 3

    task = dataclasses.replace(task, checkpoint_url=url)
    preempt_at(per_epoch + 2)
    with pytest.raises(ProcessExit, match="1"):
        run(dataclasses.replace(task, checkpoint_dir=str(tmp_path / "run" / "trial_0007")))
    first, last = tune_reports
    assert first["epoch"] == 1
    note = "its process was asked to end, after 2 batches of epoch 2; another process continues"
    assert last == {"number": 7, "note": note, "preempted": True}

    other_node_dir = tmp_path / ("other" if url else "run") / "trial_0007"
    steps = preempt_at(0)
    later_reports = run(dataclasses.replace(task, epochs_in_study=1, checkpoint_dir=str(other_node_dir)))
    assert reported_epochs(later_reports) == [2, 3]
    assert len(steps) == 2 * per_epoch - 2
    assert [report["metrics"]["val_loss"] for report in (first, *later_reports)] == [
        report["metrics"]["val_loss"] for report in all_reports
    ]


def test_a_fault_is_reported_with_its_traceback(run: RunTask, task: TrialTask) -> None:
    (end,) = run(dataclasses.replace(task, metric="val_loss", mode="best"))
    assert (end["number"], end["state"]) == (7, "failed")
    assert "Traceback" in end["error"]
    assert "must be max or min" in end["error"]


def test_images_that_differ_from_the_searchs_are_reported_as_unusable(run: RunTask, task: TrialTask) -> None:
    """The images changed during the search, or this machine has an incomplete copy."""
    (end,) = run(dataclasses.replace(task, images="0123"))
    assert "every trial of a search must have the images and splits" in end["unusable"]
    assert "other images in digits on " in end["unusable"]
    assert "(train 70, val 10, test 80)" in end["unusable"]
    images = open_dataset(task.dataset, data_root=Path(task.data_root), cache_root=Path(task.cache_root))
    assert reported_epochs(run(dataclasses.replace(task, images=images.digest))) == [1, 2, 3]


def test_a_missing_gpu_is_reported_as_unusable(
    run: RunTask, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (end,) = run(dataclasses.replace(task, device="cuda"))
    assert "needs a CUDA GPU that torch can use" in end["unusable"]
    assert "Traceback" not in end["unusable"]


@pytest.fixture
def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    return codes


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ActorDiedError(), [1]),
        (OutOfMemoryError("the node ran out of memory"), [1]),
        (RayTaskError("train", "a traceback", PeerFailedError("another")), []),
    ],
    ids=["died", "out of memory", "failed"],
)
def test_a_process_ends_with_a_peer_that_ended_without_an_exception(
    error: Exception, expected: list[int], exit_codes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_work: object) -> None:
        raise error

    monkeypatch.setattr("ray.get", get)
    assert isinstance(multi_process._peer_exception(object()), PeerFailedError) is (expected == [])
    assert exit_codes == expected


def test_a_process_that_cannot_watch_its_peers_ends(
    exit_codes: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise it could wait for a dead process for half an hour."""

    def wait(*_: object, **__: object) -> None:
        raise ValueError("no answer")

    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr(multi_process, "_TICK", 0.001)
    multi_process._watch([object()], threading.Event())
    assert exit_codes == [1]
    assert "cannot be watched" in caplog.text
