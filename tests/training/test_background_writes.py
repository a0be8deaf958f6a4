"""An epoch's files written by a thread while the next epoch begins: what is reported, and when.

That a trial killed while they are written equals an uninterrupted one: test_resumed_equals_uninterrupted.py.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.training.resuming import EPOCHS, STEADY, assert_same_files, metrics_of
from tune_rescon.training import EpochReport, epochs_in_checkpoint
from tune_rescon.training.callbacks import Preempted
from tune_rescon.training.checkpoint import copy_to_host, read_checkpoint
from tune_rescon.training.messages import never
from tune_rescon.training.module import TrialModule

if TYPE_CHECKING:
    from tests.training.conftest import Run

#: Moments at which a trial of the small configuration looks whether it is to leave: after three of four
#: batches and at its end in the first epoch, then after two batches of the second.
WITHIN_THE_SECOND_EPOCH = 6


class Gate:
    """Holds a thread that writes checkpoints until it is opened; the training's own thread may pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.opened = threading.Event()
        save = torch.save

        def gated(*args: Any, **kwargs: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                assert self.opened.wait(60)
            save(*args, **kwargs)

        monkeypatch.setattr(torch, "save", gated)

    def look(self) -> bool:
        """Open in the second epoch. Given as ``is_preempted``: it never asks the trial to end."""
        self.looks += 1
        if self.looks == WITHIN_THE_SECOND_EPOCH:
            self.opened.set()
        return False


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.mark.torch
def test_an_epoch_is_reported_after_its_files_during_the_next_epoch(
    train: Run, tmp_path: Path, gate: Gate
) -> None:
    seen: list[tuple[int, int]] = []

    def report(_: EpochReport) -> None:
        seen.append((gate.looks, len(epochs_in_checkpoint(tmp_path))))

    train(folder=tmp_path, epochs=2, on_epoch=report, is_preempted=gate.look, background_writes=True)
    (looks, recorded), last = seen
    assert looks >= WITHIN_THE_SECOND_EPOCH
    assert recorded == 1, "reported before its file was there, or after the next one"
    assert last[1] == 2


@pytest.mark.torch
def test_a_trial_stopped_by_its_report_writes_nothing_of_the_next_epoch(
    train: Run, tmp_path: Path, gate: Gate
) -> None:
    """Its files were written after steps of the second epoch had changed the weights."""
    reports: list[EpochReport] = []

    def stop(epoch: EpochReport) -> None:
        reports.append(epoch)
        raise SystemExit("stopped")

    folders = {background: tmp_path / str(background) for background in (False, True)}
    for background, folder in folders.items():
        leave = gate.look if background else never
        with pytest.raises(SystemExit, match="stopped"):
            train(folder=folder, epochs=3, on_epoch=stop, is_preempted=leave, background_writes=background)
    assert [report.epoch for report in reports] == [1, 1]
    assert gate.opened.is_set()
    for folder in folders.values():
        assert [metrics_of(report) for report in epochs_in_checkpoint(folder)] == [metrics_of(reports[0])]
        assert sorted(path.name for path in folder.iterdir()) == ["best.ckpt", "last.ckpt"]
    for name, part in (
        ("last.ckpt", "state_dict"),
        ("last.ckpt", "optimizer_states"),
        ("best.ckpt", "weights"),
    ):
        mine, theirs = (read_checkpoint(folder / name)[part] for folder in folders.values())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.torch
def test_an_error_in_the_next_epoch_comes_after_the_report(
    train: Run, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrialModule.training_step
    steps: list[int] = []
    reports: list[EpochReport] = []

    def failing(self: TrialModule, batch: Any) -> Any:
        steps.append(len(reports))
        if len(steps) == WITHIN_THE_SECOND_EPOCH:
            gate.opened.set()
            raise RuntimeError("the step failed")
        return step(self, batch)

    monkeypatch.setattr(TrialModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="the step failed"):
        train(folder=tmp_path, epochs=2, on_epoch=reports.append, background_writes=True)
    assert steps[-1] == 0, "the files of the first epoch were not being written in the second"
    assert [report.epoch for report in reports] == [1]


@pytest.mark.torch
def test_ctrl_c_in_the_next_epoch_waits_for_the_files(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    step = TrialModule.training_step
    steps: list[Any] = []
    reports: list[EpochReport] = []

    def interrupted(self: TrialModule, batch: Any) -> Any:
        steps.append(batch)
        if len(steps) == WITHIN_THE_SECOND_EPOCH:
            gate.opened.set()
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(TrialModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, epochs=2, on_epoch=reports.append, background_writes=True)
    # A resumed trial's process reports it, as after a kill between the files and the report.
    assert reports == []
    assert len(epochs_in_checkpoint(tmp_path)) == 1


@pytest.mark.torch
def test_a_preempted_trial_first_reports_the_finished_epoch(train: Run, tmp_path: Path, gate: Gate) -> None:
    told: list[str] = []

    def leave() -> bool:
        gate.look()
        return gate.looks == WITHIN_THE_SECOND_EPOCH

    with pytest.raises(Preempted) as left:
        train(
            folder=tmp_path,
            epochs=2,
            on_epoch=lambda report: told.append(
                f"epoch {report.epoch}, {len(epochs_in_checkpoint(tmp_path))}"
            ),
            is_preempted=leave,
            background_writes=True,
        )
    assert (left.value.epoch, left.value.batches) == (2, 2)
    assert told == ["epoch 1, 1"]


@pytest.mark.torch
def test_background_and_synchronous_writes_give_equal_trials(train: Run, tmp_path: Path) -> None:
    folders = {background: tmp_path / str(background) for background in (False, True)}
    reports = [
        train(folder=folder, epochs=EPOCHS, background_writes=background, **STEADY)
        for background, folder in folders.items()
    ]
    assert [metrics_of(report) for report in reports[0]] == [metrics_of(report) for report in reports[1]]
    assert_same_files(folders[True], folders[False])


@pytest.mark.torch
def test_a_full_disk_is_reported_before_its_epoch(
    train: Run, tmp_path: Path, largest_file: Callable[[int], Any]
) -> None:
    told: list[str] = []
    with largest_file(100_000):
        train(
            folder=tmp_path,
            epochs=2,
            on_epoch=lambda report: told.append(f"epoch {report.epoch}: {report.checkpoint}"),
            on_message=told.append,
            background_writes=True,
            **STEADY,
        )
    full = "could not be written (File too large)"
    assert told == [
        f"epoch 1's network {full}; there is no best.ckpt yet",
        f"the checkpoint after epoch 1 {full}; training continues",
        "epoch 1: None",
        f"epoch 2's network {full}; there is no best.ckpt yet",
        f"the checkpoint after epoch 2 {full}; training continues",
        "epoch 2: None",
    ]


def test_a_copied_state_is_independent_of_the_original() -> None:
    weights = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state: Any = OrderedDict(weight=weights)
    state._metadata = {"": {"version": 1}}  # as that of torch's Module.state_dict
    values = ({"weights": state, "epoch": 3}, [{"momentum": weights[0], "same": weights}, ("sgd", None)])
    first, (second, third) = copy_to_host(values)
    expected = weights.clone()
    weights.zero_()
    copied = first["weights"]["weight"]
    torch.testing.assert_close(copied, expected, rtol=0, atol=0)
    assert copied.stride() == weights.stride()
    assert first["weights"]._metadata == {"": {"version": 1}}
    assert second["same"] is copied, "copied twice"
    torch.testing.assert_close(second["momentum"], expected[0], rtol=0, atol=0)
    assert (first["epoch"], third) == (3, ("sgd", None))
    assert state["weight"] is weights
