"""The cost of a search by kind of device, and the speed of its devices."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from tune_rescon.reporting.formats import csv_text, headings, json_text, markdown_text, row
from tune_rescon.reporting.page import panels
from tune_rescon.reporting.summary import device_hours, devices_of, savings
from tune_rescon.reporting.timeline import gpu_use, incumbents, throughput
from tune_rescon.tuning import StudyResult, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]


def on(trial: TrialRecord, *devices: str | None) -> TrialRecord:
    return dataclasses.replace(trial, devices=devices)


@pytest.fixture
def mixed(make_result: MakeResult, make_trial: MakeTrial) -> StudyResult:
    """Epochs of half an hour; the second trial moved, an earlier version wrote the third."""
    trials = [on(make_trial(0), "L4", "L4"), on(make_trial(1), "L4", "H100"), make_trial(2, values=(0.5,))]
    return make_result(*trials, devices_per_trial=1, device="GPU")


def test_each_epoch_counts_for_the_device_it_ran_on(mixed: StudyResult) -> None:
    assert list(device_hours(mixed).items()) == [("L4", 1.5), ("H100", 0.5), ("unknown", 0.5)]
    assert [devices_of(trial) for trial in mixed.trials] == ["L4", "L4, H100", ""]


def test_each_epoch_costs_the_devices_it_reserved(mixed: StudyResult) -> None:
    """The search was resumed with two GPUs a trial; the first trial had one."""
    trials = [dataclasses.replace(mixed.trials[0], held=(1, 1), times_ms=(1, 2)), *mixed.trials[1:]]
    result = dataclasses.replace(mixed, trials=tuple(trials), devices_per_trial=2)
    assert list(device_hours(result).items()) == [("L4", 2.0), ("H100", 1.0), ("unknown", 1.0)]
    assert incumbents(result)[-1].hours == 1.0
    assert savings(result).hours == 4.0
    assert [row(result, trial)[headings(result).index("hours")] for trial in trials] == [
        "1.000",
        "2.000",
        "1.000",
    ]


def test_every_report_format_shows_hours_by_device(mixed: StudyResult) -> None:
    document = json.loads(json_text(mixed))
    assert document["compute_hours_by_device"] == {"L4": 1.5, "H100": 0.5, "unknown": 0.5}
    assert [trial["device"] for trial in document["trials"]] == ["L4", "L4, H100", None]
    assert [line["device"] for line in csv.DictReader(io.StringIO(csv_text([mixed])))] == [
        "L4",
        "L4, H100",
        "",
    ]
    assert "By kind of device: 1.5 hours on L4, 0.5 hours on H100, 0.5 hours on unknown." in markdown_text(
        mixed
    )
    assert row(mixed, mixed.trials[1])[headings(mixed).index("device")] == "L4, H100"


def test_a_single_kind_of_device_is_not_shown_in_the_table(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(on(make_trial(0), "L4", "L4"), on(make_trial(1), "L4", "L4"))
    assert "device" not in headings(result)
    assert "By kind of device" not in markdown_text(result)


def timed(trial: TrialRecord, *epochs: tuple[float, float, float]) -> TrialRecord:
    """With epochs of (begin, end, images/s)."""
    history: dict[str, Any] = {
        "epoch_seconds": tuple(ended - begun for begun, ended, _ in epochs),
        "images_per_second": tuple(speed for _, _, speed in epochs),
    }
    return dataclasses.replace(
        trial,
        values=(0.5,) * len(epochs),
        history=history,
        times_ms=tuple(round(1000 * ended) for _, ended, _ in epochs),
    )


def test_throughput_of_trials_sharing_a_gpu_adds_up(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        timed(make_trial(0), (100.0, 110.0, 60.0), (110.0, 120.0, 60.0)),
        timed(make_trial(1), (105.0, 115.0, 50.0)),
        timed(make_trial(2), (130.0, 140.0, 100.0)),
    ]
    found = throughput(make_result(*trials, devices_per_trial=0.5, device="GPU"))
    assert found is not None
    # A part is 0.2 s; the first half minute's, in the middle of each stretch.
    assert found.begun == 100.0
    assert found.part == pytest.approx(0.2)
    middles = {2.5: 60.0, 7.5: 110.0, 12.5: 110.0, 17.5: 60.0, 25.0: 0.0, 35.0: 100.0}
    assert [found.speeds[int(second / 0.2)] for second in middles] == pytest.approx([*middles.values()])
    assert found.devices == 1
    # 2,700 images in the 30 s in which something ran, and in the 40 s of all epochs.
    assert found.per_device == pytest.approx(90.0)
    assert found.one_trial == pytest.approx(67.5)


def test_the_page_shows_throughput_below_the_slots(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trial = timed(make_trial(0), (100.0, 110.0, 60.0))
    result = make_result(trial, devices_per_trial=2, device="GPU")
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed"]
    assert slots.charts[1].data[0]["y"] == pytest.approx([60.0] * 200 + [0.0])
    assert "30 on average for each of 2 GPUs, 60 in a trial." in slots.note


def test_throughput_is_none_without_speeds(make_result: MakeResult, make_trial: MakeTrial) -> None:
    assert throughput(make_result(make_trial(0))) is None
    nameless = timed(make_trial(0), (1.0, 2.0, float("nan")))
    assert throughput(make_result(nameless)) is None


def on_gpu(trial: TrialRecord, **seconds: tuple[float, ...]) -> TrialRecord:
    """With what a trial on a GPU records besides; nan where an epoch lacks it."""
    return dataclasses.replace(trial, history={**trial.history, **seconds})


@pytest.fixture
def on_one_gpu(make_result: MakeResult, make_trial: MakeTrial) -> StudyResult:
    """Two trials after each other, five seconds between them."""
    first = on_gpu(
        timed(make_trial(0), (100.0, 110.0, 60.0), (110.0, 120.0, 60.0)),
        gpu_utilisation=(0.5, 0.9),
        first_step_seconds=(4.0, math.nan),
        validation_seconds=(1.0, 1.0),
        checkpoint_seconds=(0.5, 0.5),
    )
    second = on_gpu(
        timed(make_trial(1), (125.0, 140.0, 60.0)),
        gpu_utilisation=(0.8,),
        first_step_seconds=(1.0,),
        validation_seconds=(1.0,),
        checkpoint_seconds=(math.nan,),  # another process reported the epoch, from the checkpoint
    )
    return make_result(first, second, devices_per_trial=1, device="GPU")


def test_gpu_time_is_split_by_cause(on_one_gpu: StudyResult) -> None:
    found = gpu_use(on_one_gpu)
    assert found is not None
    assert found.shares == pytest.approx(
        {"first steps": 5 / 40, "validation": 3 / 40, "checkpoints": 1 / 40, "between trials": 5 / 40}
    )
    assert found.utilisation == pytest.approx((5 + 9 + 12) / 35)
    middles = {5.0: 0.5, 15.0: 0.9, 22.5: 0.0, 30.0: 0.8}
    levels = [found.levels[int(second / found.part)] for second in middles]
    assert levels == pytest.approx([*middles.values()])


def test_the_page_and_the_json_show_gpu_time_by_cause(on_one_gpu: StudyResult) -> None:
    slots = next(panel for panel in panels(on_one_gpu) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed", "utilisation"]
    assert "In epochs the GPU ran kernels for 74%." in slots.note
    assert (
        "first steps 12.5%, validation 7.5%, checkpoints 2.5%, between trials 12.5%; the rest" in slots.note
    )
    document = json.loads(json_text(on_one_gpu))
    assert document["gpu_utilisation"] == pytest.approx(26 / 35)
    assert document["gpu_time_shares"]["validation"] == pytest.approx(3 / 40)


def test_gpu_time_by_cause_is_shown_without_nvml(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trial = on_gpu(timed(make_trial(0), (100.0, 110.0, 60.0)), validation_seconds=(1.0,))
    result = make_result(trial, devices_per_trial=1, device="GPU")
    found = gpu_use(result)
    assert found is not None
    assert (found.utilisation, found.levels) == (None, ())
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed"]
    assert "ran kernels" not in slots.note


def test_a_search_on_cpus_has_no_gpu_use(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(timed(make_trial(0), (100.0, 110.0, 60.0)))
    assert gpu_use(result) is None
    assert gpu_use(make_result()) is None
    assert json.loads(json_text(result))["gpu_utilisation"] is None
