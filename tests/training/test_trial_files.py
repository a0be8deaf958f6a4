"""A trial's files on a full disk and after damage: training continues, and the user is informed.

test_resumed_equals_uninterrupted.py compares the resumed trials with an uninterrupted one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Train
from tests.training.forked import run_script
from tests.training.resuming import EPOCHS, IMPROVING, metrics_of
from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.training import EpochReport, epochs_in_checkpoint, load_trained

pytestmark = pytest.mark.torch

LimitFileSize = Callable[[int], AbstractContextManager[None]]


class TrialRecorder:
    """Records a trial's reports and messages, and the epochs in its files at each report."""

    def __init__(self) -> None:
        self.reports: list[EpochReport] = []
        self.messages: list[str] = []
        self.epochs_in_files: list[tuple[int, int]] = []
        self.actions: dict[int, Callable[[], object]] = {}

    def report(self, report: EpochReport) -> None:
        best = load_trained(report.best_checkpoint)[1].epoch if report.best_checkpoint else 0
        recorded = len(epochs_in_checkpoint(report.checkpoint.parent)) if report.checkpoint else 0
        self.reports.append(report)
        self.epochs_in_files.append((recorded, best))
        self.actions.get(report.epoch, lambda: None)()

    @property
    def options(self) -> dict[str, Any]:
        return {"on_epoch": self.report, "on_message": self.messages.append, **IMPROVING}


def test_a_full_disk_loses_checkpoints_but_not_the_trial(
    train: Train, tmp_path: Path, limit_file_size: LimitFileSize
) -> None:
    uninterrupted = train(folder=tmp_path / "uninterrupted", epochs=4, **IMPROVING)
    recorder, disk = TrialRecorder(), ExitStack()
    recorder.actions = {1: lambda: disk.enter_context(limit_file_size(1_000)), 3: disk.close}
    train(folder=tmp_path / "full", epochs=4, **recorder.options)
    assert [metrics_of(r) for r in recorder.reports] == [metrics_of(r) for r in uninterrupted]
    assert recorder.epochs_in_files == [(1, 1), (1, 1), (1, 1), (4, 4)]
    assert recorder.messages == [
        "epoch 2's network could not be written (File too large); best.ckpt is still epoch 1's",
        "the checkpoint after epoch 2 could not be written (File too large); training continues",
        "epoch 3's network could not be written (File too large); best.ckpt is still epoch 1's",
        "the checkpoint after epoch 3 could not be written (File too large); training continues",
    ]


def test_a_disk_full_from_the_start_leaves_no_checkpoint(
    train: Train, tmp_path: Path, limit_file_size: LimitFileSize
) -> None:
    recorder = TrialRecorder()
    with limit_file_size(1_000):
        train(folder=tmp_path, epochs=2, **recorder.options)
    assert [(report.checkpoint, report.best_checkpoint) for report in recorder.reports] == [(None, None)] * 2
    assert recorder.messages[0].endswith("(File too large); there is no best.ckpt yet")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_was_kept_by_another_metric_is_replaced(train: Train, tmp_path: Path) -> None:
    def stop(_: EpochReport) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train(folder=tmp_path, on_epoch=stop)
    assert load_trained(tmp_path / "best.ckpt")[1].epoch == 1
    train(folder=tmp_path, metric="val_macro_f1")
    assert load_trained(tmp_path / "best.ckpt")[1].epoch == 2


def test_an_unwritten_best_network_does_not_block_a_later_one(
    train: Train, tmp_path: Path, limit_file_size: LimitFileSize
) -> None:
    """Epoch 2 is the best one, but the disk is full. Epoch 3 is better than epoch 1."""
    accuracy_by_epoch = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.4}
    recorder, disk = TrialRecorder(), ExitStack()
    recorder.actions = {1: lambda: disk.enter_context(limit_file_size(1_000)), 2: disk.close}
    with pytest.MonkeyPatch.context() as patch:
        _replace_accuracy(patch, accuracy_by_epoch)
        options = recorder.options | {"metric": "val_accuracy", "mode": "max"}
        train(folder=tmp_path, epochs=4, **options)
    assert [best for _, best in recorder.epochs_in_files] == [1, 1, 3, 3]
    assert load_trained(tmp_path / "best.ckpt")[1].metrics["val_accuracy"] == 0.5


def _replace_accuracy(patch: pytest.MonkeyPatch, accuracies: dict[int, float]) -> None:
    from tune_rescon.training.epoch_reporter import EpochReporter

    measure = EpochReporter._measure

    def with_accuracy(self: EpochReporter, module: Any) -> dict[str, float]:
        epoch = len(self.metadata.history) + 1
        return measure(self, module) | {"val_accuracy": accuracies[epoch]}

    patch.setattr(EpochReporter, "_measure", with_accuracy)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_exception_in_on_message_is_raised(
    train: Train, tmp_path: Path, limit_file_size: LimitFileSize, kind: type[BaseException]
) -> None:
    def fail(message: str) -> None:
        raise kind(message)

    reports: list[EpochReport] = []
    with limit_file_size(1_000), pytest.raises(kind, match="could not be written"):
        train(folder=tmp_path, on_epoch=reports.append, on_message=fail)
    assert reports == []


_TRAIN_ON_SMALL_DISK = """
import contextlib, ctypes, json, subprocess, sys
from pathlib import Path
from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import open_dataset
from tune_rescon.training import Objective, TrialProcess, train_trial

disk, cache, config = Path(sys.argv[1]), Path(sys.argv[2]), TrialConfig.from_dict(json.loads(sys.argv[3]))
events = []

assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS: only this process sees the mounts that follow
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], check=True)

def report(epoch):
    events.append(["epoch", epoch.epoch])
    if epoch.epoch == 1:
        with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
    elif epoch.epoch == 2:
        (disk / "ballast").unlink()

def note(text):
    events.append(["note", text])

dataset = open_dataset(DatasetConfig(name="digits", limit=80), data_root=cache, cache_root=cache)
objective = Objective(metric="train_loss", mode="min")
process = TrialProcess(device="cpu", threads=1, on_message=note)
trial = {"epochs": 3, "seed": 0, "objective": objective, "process": process}
train_trial(config, dataset, checkpoint_dir=disk / "trial", on_epoch=report, **trial)
print(json.dumps(events))
"""


def test_training_continues_on_a_full_tmpfs(tmp_path: Path, small: TrialConfig) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    can_mount = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(disk)]
    if not shutil.which("unshare") or subprocess.run(can_mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk requires Linux and root")
    process = run_script(_TRAIN_ON_SMALL_DISK, str(disk), str(tmp_path), json.dumps(small.to_dict()))
    assert process.returncode == 0, process.stderr
    failure = "could not be written (No space left on device)"
    assert json.loads(process.stdout) == [
        ["epoch", 1],
        ["note", f"epoch 2's network {failure}; best.ckpt is still epoch 1's"],
        ["note", f"the checkpoint after epoch 2 {failure}; training continues"],
        ["epoch", 2],
        ["epoch", 3],
    ]


def test_a_damaged_network_of_a_finished_trial_is_reported(train: Train, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    path = tmp_path / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    messages: list[str] = []
    assert train(folder=tmp_path, epochs=1, on_message=messages.append) == []
    assert messages == ["best.ckpt was damaged; the networks of the epochs before are lost"]


def test_the_best_network_outlives_damaged_checkpoints(train: Train, tmp_path: Path) -> None:
    """A trial that starts over keeps its best network until a better one comes."""
    options = {"epochs": EPOCHS, "metric": "train_loss", "mode": "min"}
    train(folder=tmp_path, **options)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").write_bytes(b"")
    best_network: list[int] = []

    def check_best_network(report: EpochReport) -> None:
        assert report.best_checkpoint is not None
        best_network.append(load_trained(report.best_checkpoint)[1].epoch)

    train(folder=tmp_path, on_epoch=check_best_network, **options)
    assert best_network == [EPOCHS] * EPOCHS


def test_another_trials_best_network_is_refused(train: Train, small: TrialConfig, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").unlink(missing_ok=True)
    other_config = TrialConfig.from_dict(small.to_dict() | {"learning_rate": 0.01})
    with pytest.raises(StorageError, match="another config"):
        train(other_config, folder=tmp_path, epochs=1)
