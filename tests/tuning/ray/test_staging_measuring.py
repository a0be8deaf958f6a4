"""The measurement on a GPU before the first trial runs the step that trials will run there."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_rescon.config import TrialConfig
from tune_rescon.data import DatasetInfo, describe
from tune_rescon.spaces import load_space
from tune_rescon.training.cuda_graphs import CaptureError, HangWatchdog
from tune_rescon.training.device import DeviceConfig
from tune_rescon.tuning.ray.staging import _measure

pytestmark = pytest.mark.torch

CONFIG = TrialConfig(layout="cifar", width=0.25, image_size=16, batch_size=8)


class Step:
    """A step, in place of a function that holds its network and images."""

    def __init__(self, cuda_graphs: str) -> None:
        self.cuda_graphs = cuda_graphs


@pytest.fixture
def info(tmp_path: Path) -> DatasetInfo:
    return describe(load_space("digits", []).dataset, data_root=tmp_path)


@pytest.fixture
def measured_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, HangWatchdog]]:
    """``cuda_graphs`` and the watchdog of each step that is measured, without a CUDA device."""
    steps: list[tuple[str, HangWatchdog]] = []

    def build_trial_step(
        config: TrialConfig, _: DeviceConfig, *, watchdog: HangWatchdog, **_images: int
    ) -> str:
        steps.append((config.cuda_graphs, watchdog))
        return config.cuda_graphs

    on_cpu = DeviceConfig(device=torch.device("cpu"), precision="fp32")
    monkeypatch.setattr("tune_rescon.training.device.resolve_device", lambda *_, **__: on_cpu)
    monkeypatch.setattr("tune_rescon.training.probe.build_trial_step", build_trial_step)
    monkeypatch.setattr("tune_rescon.training.probe.measure_occupancy", lambda step, _: step)
    return steps


def test_after_a_hang_a_trial_is_measured_without_cuda_graphs(
    info: DatasetInfo, measured_steps: list[tuple[str, HangWatchdog]], tmp_path: Path
) -> None:
    occupancy_result: Any = _measure(CONFIG, info, tmp_path)
    assert occupancy_result == "auto"
    [(_, watchdog)] = measured_steps
    with watchdog.watching(60):
        [evidence] = tmp_path.iterdir()
        evidence.write_text("Timeout!")
        occupancy_result = _measure(CONFIG, info, tmp_path)
    assert occupancy_result == "off"


def test_a_step_that_cannot_be_recorded_is_measured_without_cuda_graphs(
    info: DatasetInfo,
    measured_steps: list[tuple[str, HangWatchdog]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def occupancy(step: str, _: DeviceConfig) -> str:
        if step == "auto":
            raise CaptureError("not permitted")
        return step

    monkeypatch.setattr("tune_rescon.training.probe.measure_occupancy", occupancy)
    occupancy_result: Any = _measure(CONFIG, info, tmp_path)
    assert occupancy_result == "off"
    assert [word for word, _ in measured_steps] == ["auto", "off"]


@pytest.mark.usefixtures("measured_steps")
def test_the_step_that_cannot_be_recorded_is_freed_before_the_next_one_is_built(
    info: DatasetInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory would count as that of the next one, which may then not fit."""
    steps: weakref.WeakSet[Step] = weakref.WeakSet()
    held: list[int] = []

    def build_trial_step(config: TrialConfig, *_: object, **__: object) -> Step:
        held.append(len(steps))
        step = Step(config.cuda_graphs)
        steps.add(step)
        return step

    def occupancy(step: Step, _: DeviceConfig) -> str:
        if step.cuda_graphs == "auto":
            raise CaptureError("not permitted")
        return step.cuda_graphs

    monkeypatch.setattr("tune_rescon.training.probe.build_trial_step", build_trial_step)
    monkeypatch.setattr("tune_rescon.training.probe.measure_occupancy", occupancy)
    occupancy_result: Any = _measure(CONFIG, info, tmp_path)
    assert (occupancy_result, held) == ("off", [0, 0])


def test_a_batch_that_does_not_fit_has_no_occupancy(
    info: DatasetInfo,
    measured_steps: list[tuple[str, HangWatchdog]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def occupancy(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("tune_rescon.training.probe.measure_occupancy", occupancy)
    assert _measure(CONFIG, info, tmp_path) is None
    assert len(measured_steps) == 1
