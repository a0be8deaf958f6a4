"""Two processes that train one trial, over gloo, without Ray."""

from __future__ import annotations

import dataclasses
import math
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import PLAIN
from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport
from tune_rescon.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.torch

#: Shares of 17 and 16 images; nothing that is drawn for a share, so that two are nearly one.
UNEVEN = dataclasses.replace(PLAIN, batch_size=17, gradient_clip=5.0, ema_decay=0.9)

Together = Callable[..., list[Any]]


Pipes = list[subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def processes() -> Iterator[Pipes]:
    """Two processes that have imported all, for trial after trial."""
    program = [sys.executable, str(Path(__file__).with_name("peer.py"))]
    started = [
        subprocess.Popen([*program, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def together(processes: Pipes, tmp_path: Path) -> Together:
    """Train with two processes; what each of them has to say, the first one first."""
    meetings = iter(range(99))

    def run(config: TrialConfig = UNEVEN, meeting: str = "", **options: Any) -> list[Any]:
        name = meeting or f"meeting{next(meetings)}"
        (tmp_path / name).unlink(missing_ok=True)
        for process in processes:
            assert process.stdin is not None
            pickle.dump((2, tmp_path / name, config, tmp_path, options), process.stdin)
            process.stdin.flush()
        return [pickle.load(process.stdout) for process in processes if process.stdout is not None]

    return run


def _values(reports: list[EpochReport], name: str) -> list[float]:
    return [report.metrics[name] for report in reports]


def test_two_processes_learn_like_one(together: Together, train: Callable[..., list[EpochReport]]) -> None:
    """Batch norm by halves of a batch is what is left of a difference, and rounding."""
    first, second = together(epochs=3)
    alone = train(UNEVEN, epochs=3)
    assert _values(first, "train_loss") == pytest.approx(_values(alone, "train_loss"), rel=0.1)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
        assert _values(first, name) == _values(second, name)


def test_a_missing_checkpoint_of_one_process_is_sent_by_the_other(together: Together, tmp_path: Path) -> None:
    together(meeting="a", stop_after=1)
    shutil.rmtree(tmp_path / "a-of-1")
    first, second = together(meeting="a", epochs=2)
    assert [report.epoch for report in first] == [report.epoch for report in second] == [2]
    sent, kept = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("a-of-1", "a-of-0"))
    assert sent["trial"]["history"] == kept["trial"]["history"][:1]


def test_a_resumed_trial_equals_an_uninterrupted_one(together: Together) -> None:
    (whole, _), (until, told) = together(epochs=3), together(meeting="b", epochs=3, stop_after=1)
    rest, _ = together(meeting="b", epochs=3)
    assert until == "InterruptedError after 1"
    assert [report.epoch for report in told] == [1]
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert _values(rest, name) == _values(whole, name)[1:]


def test_only_rank_0_writes_files(together: Together, tmp_path: Path) -> None:
    together(meeting="c", epochs=1)
    assert sorted(path.name for path in (tmp_path / "c-of-0").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert list((tmp_path / "c-of-1").iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_continue_after_out_of_memory_on_one(together: Together, rank: int) -> None:
    for reports in together(epochs=1, memory=(rank, 9)):
        assert [report.epoch for report in reports] == [1]


def test_an_error_in_one_process_ends_all(together: Together) -> None:
    assert together(broken=1) == ["PeerFailedError after 0", "ValueError after 0"]
    assert together(unbuilt=1) == ["PeerFailedError after 0", "ValueError after 0"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_cannot_be_created_ends_all(together: Together, tmp_path: Path, rank: int) -> None:
    (tmp_path / f"d-of-{rank}").write_text("not a folder")
    ended = together(meeting="d")
    assert (ended[rank], ended[1 - rank]) == ("StorageError after 0", "PeerFailedError after 0")


def test_a_loss_that_is_not_finite_ends_all(together: Together) -> None:
    for reports in together(dataclasses.replace(UNEVEN, learning_rate=1e20, gradient_clip=0.0)):
        assert math.isnan(reports[-1].metrics["train_loss"])
        assert math.isnan(reports[-1].metrics["val_accuracy"])


@pytest.mark.parametrize(("change", "rule"), [({"batch_size": 3}, "images for each of 2 workers")])
def test_a_batch_too_small_for_all_is_refused(together: Together, change: dict[str, Any], rule: str) -> None:
    del rule
    assert together(dataclasses.replace(UNEVEN, **change)) == ["ConfigError after 0"] * 2


def test_two_processes_balance_classes_like_one(
    together: Together, train: Callable[..., list[EpochReport]]
) -> None:
    balanced = dataclasses.replace(UNEVEN, class_weights="balanced", class_sampling="balanced")
    first, second = together(balanced, epochs=2)
    alone = train(balanced, epochs=2)
    assert _values(first, "train_loss") == pytest.approx(_values(alone, "train_loss"), rel=0.1)
    assert _values(first, "val_loss") == _values(second, "val_loss")
