"""An epoch's files written by a thread while the next epoch begins: what is reported, and when.

test_resumed_equals_uninterrupted.py covers trials that are killed while the files are written.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.training.resuming import EPOCHS, IMPROVING, assert_same_files, metrics_of
from tune_rescon.training import EpochReport, epochs_in_checkpoint
from tune_rescon.training.callbacks import Preempted
from tune_rescon.training.checkpoint import copy_to_host, read_checkpoint
from tune_rescon.training.messages import never
from tune_rescon.training.module import TrialModule

if TYPE_CHECKING:
    from tests.training.conftest import Train

#: The preemption check at which the small trial has trained two batches of its second epoch. The first epoch
#: has checks after three of its four batches and at its end.
IN_SECOND_EPOCH = 6


class Gate:
    """Blocks ``torch.save`` in other threads than the main one until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checks = 0
        self.opened = threading.Event()
        save = torch.save

        def gated(*args: Any, **kwargs: Any) -> None:
            if threading.current_thread() is not threading.main_thread():
                assert self.opened.wait(60)
            save(*args, **kwargs)

        monkeypatch.setattr(torch, "save", gated)

    def check(self) -> bool:
        """Open the gate in the second epoch. Used as ``is_preempted``; returns False."""
        self.checks += 1
        if self.checks == IN_SECOND_EPOCH:
            self.opened.set()
        return False


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.mark.torch
def test_an_epoch_is_reported_after_its_files_during_the_next_epoch(
    train: Train, tmp_path: Path, gate: Gate
) -> None:
    reports_and_files: list[tuple[int, int]] = []

    def report(_: EpochReport) -> None:
        reports_and_files.append((gate.checks, len(epochs_in_checkpoint(tmp_path))))

    train(folder=tmp_path, epochs=2, on_epoch=report, is_preempted=gate.check, background_writes=True)
    (checks, recorded), last = reports_and_files
    assert checks >= IN_SECOND_EPOCH
    assert recorded == 1, "one file per report"
    assert last[1] == 2


@pytest.mark.torch
def test_a_trial_stopped_by_its_report_writes_nothing_of_the_next_epoch(
    train: Train, tmp_path: Path, gate: Gate
) -> None:
    """The files are written after steps of the second epoch have changed the weights."""
    reports: list[EpochReport] = []

    def stop(epoch: EpochReport) -> None:
        reports.append(epoch)
        raise SystemExit("stopped")

    folders = {background: tmp_path / str(background) for background in (False, True)}
    for background, folder in folders.items():
        is_preempted = gate.check if background else never
        with pytest.raises(SystemExit, match="stopped"):
            train(
                folder=folder,
                epochs=3,
                on_epoch=stop,
                is_preempted=is_preempted,
                background_writes=background,
            )
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
        first, second = (read_checkpoint(folder / name)[part] for folder in folders.values())
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.torch
def test_an_error_in_the_next_epoch_comes_after_the_report(
    train: Train, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TrialModule.training_step
    steps: list[int] = []
    reports: list[EpochReport] = []

    def fail_in_second_epoch(self: TrialModule, batch: Any) -> Any:
        steps.append(len(reports))
        if len(steps) == IN_SECOND_EPOCH:
            gate.opened.set()
            raise RuntimeError("the step failed")
        return step(self, batch)

    monkeypatch.setattr(TrialModule, "training_step", fail_in_second_epoch)
    with pytest.raises(RuntimeError, match="the step failed"):
        train(folder=tmp_path, epochs=2, on_epoch=reports.append, background_writes=True)
    assert steps[-1] == 0, "the first epoch's files must still be unwritten in the second epoch"
    assert [report.epoch for report in reports] == [1]


@pytest.mark.torch
def test_ctrl_c_in_the_next_epoch_waits_for_the_files(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    step = TrialModule.training_step
    steps: list[Any] = []
    reports: list[EpochReport] = []

    def interrupt_in_second_epoch(self: TrialModule, batch: Any) -> Any:
        steps.append(batch)
        if len(steps) == IN_SECOND_EPOCH:
            gate.opened.set()
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(TrialModule, "training_step", interrupt_in_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(folder=tmp_path, epochs=2, on_epoch=reports.append, background_writes=True)
    # The epoch is reported by the resumed trial, as after a kill between the files and the report.
    assert reports == []
    assert len(epochs_in_checkpoint(tmp_path)) == 1


@pytest.mark.torch
def test_a_preempted_trial_first_reports_the_finished_epoch(train: Train, tmp_path: Path, gate: Gate) -> None:
    reported: list[str] = []

    def is_preempted() -> bool:
        gate.check()
        return gate.checks == IN_SECOND_EPOCH

    with pytest.raises(Preempted) as preemption:
        train(
            folder=tmp_path,
            epochs=2,
            on_epoch=lambda report: reported.append(
                f"epoch {report.epoch}, {len(epochs_in_checkpoint(tmp_path))}"
            ),
            is_preempted=is_preempted,
            background_writes=True,
        )
    assert (preemption.value.epoch, preemption.value.batches) == (2, 2)
    assert reported == ["epoch 1, 1"]


@pytest.mark.torch
def test_background_and_synchronous_writes_give_equal_trials(train: Train, tmp_path: Path) -> None:
    folders = {background: tmp_path / str(background) for background in (False, True)}
    reports = [
        train(folder=folder, epochs=EPOCHS, background_writes=background, **IMPROVING)
        for background, folder in folders.items()
    ]
    assert [metrics_of(report) for report in reports[0]] == [metrics_of(report) for report in reports[1]]
    assert_same_files(folders[True], folders[False])


@pytest.mark.torch
def test_a_full_disk_is_reported_before_its_epoch(
    train: Train, tmp_path: Path, file_size_limit: Callable[[int], Any]
) -> None:
    reported: list[str] = []
    with file_size_limit(100_000):
        train(
            folder=tmp_path,
            epochs=2,
            on_epoch=lambda report: reported.append(f"epoch {report.epoch}: {report.checkpoint}"),
            on_message=reported.append,
            background_writes=True,
            **IMPROVING,
        )
    failure = "could not be written (File too large)"
    assert reported == [
        f"epoch 1's network {failure}; there is no best.ckpt yet",
        f"the checkpoint after epoch 1 {failure}; training continues",
        "epoch 1: None",
        f"epoch 2's network {failure}; there is no best.ckpt yet",
        f"the checkpoint after epoch 2 {failure}; training continues",
        "epoch 2: None",
    ]


def test_a_copied_state_is_independent_of_the_original() -> None:
    weights = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state: Any = OrderedDict(weight=weights)
    state._metadata = {"": {"version": 1}}  # as in Module.state_dict
    values = ({"weights": state, "epoch": 3}, [{"momentum": weights[0], "same": weights}, ("sgd", None)])
    first, (second, third) = copy_to_host(values)
    expected = weights.clone()
    weights.zero_()
    copied = first["weights"]["weight"]
    torch.testing.assert_close(copied, expected, rtol=0, atol=0)
    assert copied.stride() == weights.stride()
    assert first["weights"]._metadata == {"": {"version": 1}}
    assert second["same"] is copied, "a shared tensor must be copied once"
    torch.testing.assert_close(second["momentum"], expected[0], rtol=0, atol=0)
    assert (first["epoch"], third) == (3, ("sgd", None))
    assert state["weight"] is weights
