"""Damaged files: what is passed over, where the trial goes on instead, and what the user is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.config import TrialConfig
from tune_rescon.errors import StorageError
from tune_rescon.training import EpochReport, load_trained, recorded_epochs

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]
EPOCHS = 3
TIMES = ("images_per_second", "epoch_seconds")


def values(reports: list[EpochReport]) -> list[dict[str, float]]:
    return [{k: v for k, v in report.metrics.items() if k not in TIMES} for report in reports]


class _Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(train: Run) -> list[EpochReport]:
    """An uninterrupted trial's reports."""
    return train(epochs=EPOCHS)


@pytest.fixture(scope="module")
def cut(train: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same trial, killed after its second epoch."""

    def stop(report: EpochReport) -> None:
        if report.epoch == 2:
            raise _Killed

    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(_Killed):
        train(folder=folder, epochs=EPOCHS, on_epoch=stop)
    return folder


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _scratch(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 256] = bytes(byte ^ 1 for byte in data[middle : middle + 256])
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


LAST, BOTH, BEST = (
    "the last checkpoint was damaged; going on from epoch 1",
    "both checkpoints were damaged; beginning again",
    "best.ckpt was damaged; the networks of the epochs before are lost",
)


@pytest.mark.parametrize(
    ("damage", "files", "behind", "notes"),
    [
        (_empty, ["last.previous"], 2, []),
        (_truncate, ["last"], 1, [LAST]),
        (_scratch, ["last"], 1, [LAST]),
        (_scratch, ["last", "last.previous"], 0, [BOTH]),
        (_scratch, ["best"], 2, [BEST]),
        (_empty, ["last", "best"], 1, [LAST, BEST]),
        (_truncate, ["last", "last.previous", "best"], 0, [BOTH, BEST]),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else getattr(value, "__name__", None),
)
def test_damage_costs_epochs_and_not_the_trial(
    train: Run,
    whole: list[EpochReport],
    cut: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    files: list[str],
    behind: int,
    notes: list[str],
) -> None:
    folder = shutil.copytree(cut, tmp_path / "trial")
    for name in files:
        damage(folder / f"{name}.ckpt")
    recorded = recorded_epochs(folder)
    told: list[str] = []
    assert values(list(recorded)) == values(whole)[:behind]
    assert all((report.best_checkpoint is None) is ("best" in files) for report in recorded)
    rest = train(folder=folder, epochs=EPOCHS, on_note=told.append)
    assert told == notes
    assert [report.epoch for report in rest] == list(range(behind + 1, EPOCHS + 1))
    assert values(rest) == values(whole)[behind:]
    assert all(report.best_checkpoint == folder / "best.ckpt" for report in rest)


def test_a_lost_best_network_gives_way_to_the_next_epochs(train: Run, cut: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cut, tmp_path / "trial")
    _truncate(folder / "best.ckpt")
    train(folder=folder, epochs=EPOCHS)
    assert load_trained(folder / "best.ckpt")[1].epoch == 3


def test_the_loss_of_a_finished_trials_network_is_told(train: Run, tmp_path: Path) -> None:
    train(folder=tmp_path, epochs=1)
    _truncate(tmp_path / "best.ckpt")
    told: list[str] = []
    assert train(folder=tmp_path, epochs=1, on_note=told.append) == []
    assert told == [BEST]


def test_the_best_network_outlives_damaged_checkpoints(train: Run, tmp_path: Path) -> None:
    """A trial that begins again is the same trial: what it once kept is not replaced by something worse."""
    options = {"epochs": EPOCHS, "metric": "train_loss", "mode": "min"}
    train(folder=tmp_path, **options)
    for name in ("last", "last.previous"):
        _empty(tmp_path / f"{name}.ckpt")
    kept: list[int] = []

    def look(report: EpochReport) -> None:
        assert report.best_checkpoint is not None
        kept.append(load_trained(report.best_checkpoint)[1].epoch)

    train(folder=tmp_path, on_epoch=look, **options)
    assert kept == [EPOCHS] * EPOCHS


def test_another_trials_best_network_is_not_taken_for_ones_own(
    train: Run, small: TrialConfig, tmp_path: Path
) -> None:
    train(folder=tmp_path, epochs=1)
    for name in ("last", "last.previous"):
        (tmp_path / f"{name}.ckpt").unlink(missing_ok=True)
    other = TrialConfig.from_dict(small.to_dict() | {"learning_rate": 0.01})
    with pytest.raises(StorageError, match="another config"):
        train(other, folder=tmp_path, epochs=1)
