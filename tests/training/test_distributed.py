"""Two processes that train one trial, over gloo, without Ray."""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import PLAIN_CONFIG, Train
from tests.training.forked import PROCESSES
from tests.training.peer import train_until_closed
from tests.training.test_preemption import at_check
from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport, Objective
from tune_rescon.training.callbacks import Preempted
from tune_rescon.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.torch

#: Shards of 9 and 8 images, without random transforms, so that two processes train nearly like one.
UNEVEN = dataclasses.replace(PLAIN_CONFIG, batch_size=17, gradient_clip=5.0, ema_decay=0.9)

TrainOnTwo = Callable[..., list[Any]]
Peers = list[Connection]


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """Connections to two processes that train one trial after the other."""
    root = tmp_path_factory.mktemp("digits")
    connections: Peers = []
    with ExitStack() as stack:
        for rank in range(2):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(target=train_until_closed, args=(rank, theirs, root), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
            connections.append(stack.enter_context(ours))
            theirs.close()
        yield connections


@pytest.fixture
def train_on_two(peers: Peers, tmp_path: Path) -> TrainOnTwo:
    """Trains a trial with two processes; returns the reports or the error of each rank."""
    rendezvous_numbers = iter(range(99))

    def run(config: TrialConfig = UNEVEN, rendezvous: str = "", **options: Any) -> list[Any]:
        name = rendezvous or f"rendezvous{next(rendezvous_numbers)}"
        (tmp_path / name).unlink(missing_ok=True)
        for peer in peers:
            peer.send((2, tmp_path / name, config, tmp_path, options))
        return [peer.recv() for peer in peers]

    return run


def _values(reports: list[EpochReport], name: str) -> list[float]:
    return [report.metrics[name] for report in reports]


def _last(reports: list[EpochReport], name: str) -> float:
    return reports[-1].metrics[name]


def test_two_processes_learn_like_one(train_on_two: TrainOnTwo, train: Train) -> None:
    """The results differ by the batch norm statistics of each half of a batch, and by rounding."""
    first, second = train_on_two(epochs=3)
    single = train(UNEVEN, epochs=3)
    assert _values(first, "train_loss") == pytest.approx(_values(single, "train_loss"), rel=0.1)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5"):
        assert _values(first, name) == _values(second, name)


def test_two_processes_take_the_steps_of_one_if_no_batch_norm_tells_them_apart(
    train_on_two: TrainOnTwo, train: Train
) -> None:
    config = dataclasses.replace(UNEVEN, network="tests.own_networks:unused")
    first, _ = train_on_two(config, epochs=3)
    single = train(config, epochs=3)
    for name in ("train_loss", "val_loss"):
        assert _values(first, name) == pytest.approx(_values(single, name), rel=1e-5)


def test_a_missing_checkpoint_of_one_process_is_sent_by_the_other(
    train_on_two: TrainOnTwo, tmp_path: Path
) -> None:
    train_on_two(rendezvous="a", stop_after=1)
    shutil.rmtree(tmp_path / "a-of-1")
    first, second = train_on_two(rendezvous="a", epochs=2)
    assert [report.epoch for report in first] == [report.epoch for report in second] == [2]
    received, kept = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("a-of-1", "a-of-0"))
    assert received["trial"]["history"] == kept["trial"]["history"][:1]


@pytest.mark.parametrize(
    ("settings", "objective", "names"),
    [
        ({}, Objective(), ("val_loss", "val_accuracy")),
        # Batch norm's running statistics are evaluated, of which each process has its own.
        ({"precise_bn_batches": 0}, Objective(), ("val_loss", "val_accuracy")),
        ({"precise_bn_batches": 0, "ema_decay": 0.0}, Objective(metric="test_accuracy"), ("test_loss",)),
    ],
)
def test_a_resumed_trial_equals_an_uninterrupted_one(
    train_on_two: TrainOnTwo, settings: dict[str, Any], objective: Objective, names: tuple[str, ...]
) -> None:
    config = dataclasses.replace(UNEVEN, **settings)
    run = functools.partial(train_on_two, config, epochs=2, objective=objective)
    uninterrupted, _ = run()
    first_error, second_reports = run(rendezvous="b", stop_after=1)
    resumed, _ = run(rendezvous="b")
    assert first_error == "InterruptedError after 1"
    assert [report.epoch for report in second_reports] == [1]
    assert _values(resumed, "train_loss") == _values(uninterrupted, "train_loss")[1:]
    for name in names:
        assert _last(resumed, name) == _last(uninterrupted, name)


def test_two_processes_resume_an_epoch_that_one_began(
    train_on_two: TrainOnTwo, train: Train, tmp_path: Path
) -> None:
    config = dataclasses.replace(UNEVEN, network="tests.own_networks:unused")
    uninterrupted = train(config, epochs=1)
    with pytest.raises(Preempted, match="after 2 batches of epoch 1"):
        train(config, tmp_path / "e-of-0", epochs=1, is_preempted=at_check(2))
    for reports in train_on_two(config, rendezvous="e", epochs=1):
        for name in ("train_loss", "train_accuracy", "val_loss"):
            assert _values(reports, name) == pytest.approx(_values(uninterrupted, name), rel=1e-5)


def test_only_rank_0_writes_files(train_on_two: TrainOnTwo, tmp_path: Path) -> None:
    train_on_two(rendezvous="c", epochs=1)
    assert sorted(path.name for path in (tmp_path / "c-of-0").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert list((tmp_path / "c-of-1").iterdir()) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_continue_after_out_of_memory_on_one(train_on_two: TrainOnTwo, rank: int) -> None:
    for reports in train_on_two(epochs=1, memory=(rank, 9)):
        assert [report.epoch for report in reports] == [1]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_continue_without_cuda_graphs_if_one_cannot_capture(
    train_on_two: TrainOnTwo, rank: int
) -> None:
    expected = _values(train_on_two(epochs=1)[0], "train_loss")
    for reports in train_on_two(epochs=1, rank_without_graphs=rank):
        assert _values(reports, "train_loss") == expected


def test_an_error_in_one_process_ends_all(train_on_two: TrainOnTwo) -> None:
    assert train_on_two(failing_rank=1) == ["PeerFailedError after 0", "ValueError after 0"]
    assert train_on_two(rank_without_network=1) == ["PeerFailedError after 0", "ValueError after 0"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_cannot_be_created_ends_all(
    train_on_two: TrainOnTwo, tmp_path: Path, rank: int
) -> None:
    (tmp_path / f"d-of-{rank}").write_text("not a folder")
    errors = train_on_two(rendezvous="d")
    assert (errors[rank], errors[1 - rank]) == ("StorageError after 0", "PeerFailedError after 0")


def test_a_loss_that_is_not_finite_ends_all(train_on_two: TrainOnTwo) -> None:
    for reports in train_on_two(dataclasses.replace(UNEVEN, learning_rate=1e20, gradient_clip=0.0)):
        assert math.isnan(reports[-1].metrics["train_loss"])
        assert math.isnan(reports[-1].metrics["val_accuracy"])


def test_a_batch_too_small_for_both_processes_is_refused(train_on_two: TrainOnTwo) -> None:
    assert train_on_two(dataclasses.replace(UNEVEN, batch_size=3)) == ["ConfigError after 0"] * 2


def test_two_processes_balance_classes_like_one(train_on_two: TrainOnTwo, train: Train) -> None:
    balanced = dataclasses.replace(UNEVEN, class_weights="balanced", class_sampling="balanced")
    first, second = train_on_two(balanced, epochs=2)
    single = train(balanced, epochs=2)
    assert _values(first, "train_loss") == pytest.approx(_values(single, "train_loss"), rel=0.1)
    assert _values(first, "val_loss") == _values(second, "val_loss")
