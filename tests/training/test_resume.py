"""A trial that was ended between epochs and goes on, in this process, equals one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.training import EpochReport

pytestmark = pytest.mark.torch

Run = Callable[..., list[EpochReport]]
EPOCHS = 4
TIMES = ("images_per_second", "epoch_seconds")


class _Killed(BaseException):
    pass


def values(reports: list[EpochReport]) -> list[dict[str, float]]:
    return [{k: v for k, v in report.metrics.items() if k not in TIMES} for report in reports]


def interrupted(train: Run, config: TrialConfig, folder: Path, *, after: int) -> list[EpochReport]:
    reports: list[EpochReport] = []

    def stop(report: EpochReport) -> None:
        reports.append(report)
        if report.epoch == after:
            raise _Killed

    with pytest.raises(_Killed):
        train(config, folder=folder, epochs=EPOCHS, on_epoch=stop)
    return reports


def test_a_trial_cut_after_every_epoch_equals_an_uninterrupted_one(
    train: Run, small: TrialConfig, tmp_path: Path
) -> None:
    whole = train(small, epochs=EPOCHS)
    pieces = []
    for epoch in range(1, EPOCHS + 1):
        torch.rand(epoch)  # another process would have another state
        pieces.append(interrupted(train, small, tmp_path, after=epoch))
    assert [len(piece) for piece in pieces] == [1] * EPOCHS
    assert values([report for piece in pieces for report in piece]) == values(whole)
