"""The cost of a search by kind of device, and the speed of its devices."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.reporting.formats import (
    comparison_row,
    csv_text,
    differences,
    headings,
    json_text,
    markdown_text,
    mlflow_note,
    row,
)
from tune_rescon.reporting.hours import device_hours, reserved_hours, savings
from tune_rescon.reporting.incumbents import groups, incumbents
from tune_rescon.reporting.live_state import GaugeValues, LiveTotals
from tune_rescon.reporting.page import panels, render_page
from tune_rescon.reporting.search_charts import incumbent_curves
from tune_rescon.reporting.summary import cost_fronts, devices_of
from tune_rescon.reporting.terminal import print_result
from tune_rescon.reporting.timeline import gpu_use, throughput
from tune_rescon.spaces import load_space
from tune_rescon.tuning import StudyResult, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]


def on_devices(trial: TrialRecord, *devices: str | None) -> TrialRecord:
    return dataclasses.replace(trial, devices=devices)


@pytest.fixture
def two_devices(make_result: MakeResult, make_trial: MakeTrial) -> StudyResult:
    """Half-hour epochs; the second trial changed its device, the third has none (an earlier version)."""
    trials = [
        on_devices(make_trial(0), "L4", "L4"),
        on_devices(make_trial(1), "L4", "H100"),
        make_trial(2, values=(0.5,)),
    ]
    return make_result(*trials, devices_per_trial=1, device="GPU")


def test_each_epoch_counts_for_the_device_it_ran_on(two_devices: StudyResult) -> None:
    assert list(device_hours(two_devices).items()) == [("L4", 1.5), ("H100", 0.5), ("unknown", 0.5)]
    assert [devices_of(trial) for trial in two_devices.trials] == ["L4", "L4, H100", ""]


def test_each_epoch_costs_the_devices_it_reserved(two_devices: StudyResult) -> None:
    """The search was resumed with two GPUs a trial; the first trial had one."""
    trials = [
        dataclasses.replace(two_devices.trials[0], device_counts=(1, 1), times_ms=(1, 2)),
        *two_devices.trials[1:],
    ]
    result = dataclasses.replace(two_devices, trials=tuple(trials), devices_per_trial=2)
    assert list(device_hours(result).items()) == [("L4", 2.0), ("H100", 1.0), ("unknown", 1.0)]
    assert incumbents(result)[-1].hours == 1.0
    assert savings(result).hours == 4.0
    assert [row(result, trial)[headings(result).index("hours")] for trial in trials] == [
        "1.000",
        "2.000",
        "1.000",
    ]


def test_hours_of_cores_and_of_gpus_are_not_added(
    make_result: MakeResult, make_trial: MakeTrial, capsys: pytest.CaptureFixture[str]
) -> None:
    """The search began on two cores a trial, and was resumed with a GPU."""
    trials = [
        dataclasses.replace(on_devices(make_trial(0), "CPU", "CPU"), device_counts=(2.0, 2.0)),
        dataclasses.replace(on_devices(make_trial(1), "H100", "H100"), device_counts=(1.0, 1.0)),
    ]
    result = make_result(*trials, devices_per_trial=1, device="GPU")
    expected = "1 GPU-hours and 2 core-hours"
    assert expected in markdown_text(result)
    assert expected in mlflow_note(result)
    page = render_page(result, written=datetime(2026, 1, 1))
    assert "<b>1</b><span>GPU-hours reserved</span>" in page
    assert "<b>2</b><span>core-hours reserved</span>" in page
    print_result(result, Console())
    assert f"{expected} reserved" in capsys.readouterr().out
    totals = LiveTotals(load_space("digits", ["resources_per_trial={cpu: 1, gpu: 1}"]), "s")
    totals.on_search_start(trials)
    assert totals.snapshot(GaugeValues(slots=1)).hours == {"GPU-hours": 1.0, "core-hours": 2.0}
    on_cores = make_result(trials[0], device="CPU")
    (line,) = differences([result, on_cores])
    assert "GPU-hours and core-hours" in line


def test_hours_on_several_kinds_of_gpu_are_not_those_of_the_last_kind(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """The search began on an L4, and was resumed with `resources_per_trial.accelerator: H100`."""
    trials = [on_devices(make_trial(0), "NVIDIA L4", "NVIDIA L4"), on_devices(make_trial(1), "NVIDIA H100")]
    result = make_result(*trials, devices_per_trial=1, device="H100")
    assert reserved_hours(result) == {"GPU-hours": 2.0}
    assert [front.title for front in cost_fronts(result)][-1] == "GPU-hours"
    h100_only = make_result(trials[1], devices_per_trial=1, device="H100")
    assert reserved_hours(h100_only) == {"H100-hours": 1.0}
    resources = "resources_per_trial={cpu: 1, gpu: 1, accelerator: H100}"
    totals = LiveTotals(load_space("digits", [resources]), "s")
    totals.on_search_start(trials)
    metrics = {"images_per_second": 1.0, "epoch_seconds": 1800.0}
    totals.on_trial_start(make_trial(2, TrialState.RUNNING, ()), now=0.0)
    totals.on_epoch(make_trial(2, TrialState.RUNNING, (0.5,)), metrics, now=1800.0)
    assert totals.snapshot(GaugeValues(slots=1)).hours == {"GPU-hours": 2.5}


def test_charts_and_fronts_of_a_moved_search_add_no_core_hours_to_gpu_hours(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Trial 2 began on two cores a trial; the search was resumed with a GPU. Each epoch took half an hour."""
    trials = [
        dataclasses.replace(
            on_devices(make_trial(0), "CPU", "CPU"), device_counts=(2.0, 2.0), times_ms=(1, 2)
        ),
        dataclasses.replace(
            on_devices(make_trial(1, values=(0.3, 0.6)), "H100", "H100"),
            device_counts=(1.0, 1.0),
            times_ms=(4, 5),
        ),
        dataclasses.replace(
            on_devices(make_trial(2, TrialState.STOPPED, (0.3, 0.4)), "CPU", "H100"),
            device_counts=(2.0, 1.0),
            times_ms=(3, 6),
        ),
    ]
    parameters = [{"depth": depth} for depth in (56, 56, 92)]
    trials = [dataclasses.replace(t, parameters=p) for t, p in zip(trials, parameters, strict=True)]
    space = load_space("digits", ["scheduler={type: asha, group_by: depth}"])
    result = make_result(*trials, devices_per_trial=1, device="GPU", rungs=(1, 4), space=space)
    fronts = {front.title: front for front in cost_fronts(result)}
    assert [(trial.number, cost) for trial, cost in fronts["GPU-hours"].points] == [(1, 1.0)]
    assert [(trial.number, cost) for trial, cost in fronts["core-hours"].points] == [(0, 2.0)]
    assert [trial.number for trial, _ in fronts["GMACs an image"].points] == [0, 1, 2]
    assert [(best.hours, best.number) for best in incumbents(result)] == [(0.5, 0), (1.0, 0), (2.5, 1)]
    chart = incumbent_curves([result])
    assert chart.layout["xaxis"]["title"]["text"] == "training hours spent"
    assert chart.data[0]["x"][-1] == 3.0
    assert [(group.value, group.hours) for group in groups(result)] == [(56, 2.0), (92, 1.0)]
    # Two epochs of the trial that a GPU trained last.
    assert savings(result).hours_saved == {"GPU-hours": 1.0}
    assert "epochs saved, about 1 GPU-hours</span>" in render_page(result, written=datetime(2026, 1, 1))
    assert comparison_row(result)[-2] == "1.500 + 3.000"


def test_every_report_format_shows_hours_by_device(two_devices: StudyResult) -> None:
    document = json.loads(json_text(two_devices))
    assert document["compute_hours_by_device"] == {"L4": 1.5, "H100": 0.5, "unknown": 0.5}
    assert [trial["device"] for trial in document["trials"]] == ["L4", "L4, H100", None]
    assert [line["device"] for line in csv.DictReader(io.StringIO(csv_text([two_devices])))] == [
        "L4",
        "L4, H100",
        "",
    ]
    assert "By kind of device: 1.5 hours on L4, 0.5 hours on H100, 0.5 hours on unknown." in markdown_text(
        two_devices
    )
    assert row(two_devices, two_devices.trials[1])[headings(two_devices).index("device")] == "L4, H100"


def test_a_single_kind_of_device_is_not_shown_in_the_table(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(on_devices(make_trial(0), "L4", "L4"), on_devices(make_trial(1), "L4", "L4"))
    assert "device" not in headings(result)
    assert "By kind of device" not in markdown_text(result)


def with_epochs(trial: TrialRecord, *epochs: tuple[float, float, float]) -> TrialRecord:
    """Return the trial with epochs of (start, end, images/s)."""
    history: dict[str, Any] = {
        "epoch_seconds": tuple(end - start for start, end, _ in epochs),
        "images_per_second": tuple(speed for _, _, speed in epochs),
    }
    return dataclasses.replace(
        trial,
        values=(0.5,) * len(epochs),
        history=history,
        times_ms=tuple(round(1000 * end) for _, end, _ in epochs),
    )


def test_throughput_of_trials_sharing_a_gpu_adds_up(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        with_epochs(make_trial(0), (100.0, 110.0, 60.0), (110.0, 120.0, 60.0)),
        with_epochs(make_trial(1), (105.0, 115.0, 50.0)),
        with_epochs(make_trial(2), (130.0, 140.0, 100.0)),
    ]
    rate = throughput(make_result(*trials, devices_per_trial=0.5, device="GPU"))
    assert rate is not None
    # Bins of 0.2 s; checked in the middle of each stretch of constant throughput.
    assert rate.start == 100.0
    assert rate.interval == pytest.approx(0.2)
    expected = {2.5: 60.0, 7.5: 110.0, 12.5: 110.0, 17.5: 60.0, 25.0: 0.0, 35.0: 100.0}
    assert [rate.speeds[int(second / 0.2)] for second in expected] == pytest.approx([*expected.values()])
    assert rate.devices == 1
    # 2,700 images in 30 s of busy device time and in 40 s of epochs.
    assert rate.per_device == pytest.approx(90.0)
    assert rate.one_trial == pytest.approx(67.5)


def test_the_devices_are_those_that_the_trials_held(make_result: MakeResult, make_trial: MakeTrial) -> None:
    """The search was resumed with one GPU for each trial instead of four."""
    trials = [
        dataclasses.replace(with_epochs(make_trial(0), (100.0, 110.0, 80.0)), device_counts=(4.0,)),
        dataclasses.replace(with_epochs(make_trial(1), (200.0, 210.0, 20.0)), device_counts=(1.0,)),
        with_epochs(make_trial(2), (200.0, 210.0, 20.0)),
    ]
    rate = throughput(make_result(*trials, devices_per_trial=1, device="GPU"))
    assert rate is not None
    assert rate.devices == 4
    # 1,200 images in 20 s.
    assert rate.per_device == pytest.approx(15.0)


def test_a_moved_search_has_no_speed_of_a_device(make_result: MakeResult, make_trial: MakeTrial) -> None:
    """The search began on eight cores, and was resumed with a GPU."""
    trials = [
        dataclasses.replace(
            with_epochs(make_trial(0), (0.0, 10.0, 8.0)), device_counts=(8.0,), devices=("CPU",)
        ),
        dataclasses.replace(
            with_epochs(make_trial(1), (10.0, 20.0, 80.0)), device_counts=(1.0,), devices=("H100",)
        ),
    ]
    result = make_result(*trials, devices_per_trial=1, device="GPU")
    assert json.loads(json_text(result))["images_per_second_and_device"] is None
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert "Training images per second: 44 in a trial." in slots.note


def test_the_speed_of_several_kinds_of_gpu_is_not_that_of_the_last_kind(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trials = [
        dataclasses.replace(with_epochs(make_trial(n), (0.0, 10.0, 30.0)), devices=(kind,))
        for n, kind in enumerate(("NVIDIA L4", "NVIDIA H100"))
    ]
    result = make_result(*trials, devices_per_trial=1, device="H100")
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert "30 on average for each of 2 GPUs, 30 in a trial." in slots.note


def test_the_hours_of_a_long_search_have_no_exponent(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trial = on_devices(make_trial(0), "L4", "H100")
    text = markdown_text(make_result(trial, devices_per_trial=25_000, device="GPU"))
    assert "By kind of device: 12,500 hours on H100, 12,500 hours on L4." in text


def test_the_time_axis_of_a_search_that_was_resumed_days_later_is_in_hours(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    trial = with_epochs(make_trial(0), (0.0, 60.0, 1.0), (360_000.0, 360_060.0, 1.0))
    slots = next(panel for panel in panels(make_result(trial)) if panel.heading == "Slots")
    assert slots.charts[0].layout["xaxis"]["title"]["text"] == "hours since the first epoch"
    assert slots.charts[0].data[0]["base"] == [0.0, 100.0]


def test_the_page_shows_throughput_below_the_slots(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trial = with_epochs(make_trial(0), (100.0, 110.0, 60.0))
    result = make_result(trial, devices_per_trial=2, device="GPU")
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed"]
    assert slots.charts[1].data[0]["y"] == pytest.approx([60.0] * 200 + [0.0])
    assert "30 on average for each of 2 GPUs, 60 in a trial." in slots.note


def test_throughput_is_none_without_speeds(make_result: MakeResult, make_trial: MakeTrial) -> None:
    assert throughput(make_result(make_trial(0))) is None
    without_speed = with_epochs(make_trial(0), (1.0, 2.0, float("nan")))
    assert throughput(make_result(without_speed)) is None


def with_gpu_metrics(trial: TrialRecord, **seconds: tuple[float, ...]) -> TrialRecord:
    """Return the trial with metrics that are recorded on a GPU; nan where an epoch lacks them."""
    return dataclasses.replace(trial, history={**trial.history, **seconds})


@pytest.fixture
def gpu_search(make_result: MakeResult, make_trial: MakeTrial) -> StudyResult:
    """Two trials in sequence, with five idle seconds between them."""
    first = with_gpu_metrics(
        with_epochs(make_trial(0), (100.0, 110.0, 60.0), (110.0, 120.0, 60.0)),
        gpu_utilisation=(0.5, 0.9),
        first_step_seconds=(4.0, math.nan),
        validation_seconds=(1.0, 1.0),
        checkpoint_seconds=(0.5, 0.5),
    )
    second = with_gpu_metrics(
        with_epochs(make_trial(1), (125.0, 140.0, 60.0)),
        gpu_utilisation=(0.8,),
        first_step_seconds=(1.0,),
        validation_seconds=(1.0,),
        checkpoint_seconds=(math.nan,),  # the epoch was reported from its checkpoint by another process
    )
    return make_result(first, second, devices_per_trial=1, device="GPU")


def test_gpu_time_is_split_by_cause(gpu_search: StudyResult) -> None:
    use = gpu_use(gpu_search)
    assert use is not None
    assert use.shares == pytest.approx(
        {"first steps": 5 / 40, "validation": 3 / 40, "checkpoints": 1 / 40, "between trials": 5 / 40}
    )
    assert use.utilisation == pytest.approx((5 + 9 + 12) / 35)
    expected = {5.0: 0.5, 15.0: 0.9, 22.5: 0.0, 30.0: 0.8}
    levels = [use.levels[int(second / use.interval)] for second in expected]
    assert levels == pytest.approx([*expected.values()])


def test_the_page_and_the_json_show_gpu_time_by_cause(gpu_search: StudyResult) -> None:
    slots = next(panel for panel in panels(gpu_search) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed", "utilisation"]
    assert "In epochs the GPU ran kernels for 74%." in slots.note
    assert (
        "first steps 12.5%, validation 7.5%, checkpoints 2.5%, between trials 12.5%; the rest" in slots.note
    )
    document = json.loads(json_text(gpu_search))
    assert document["gpu_utilisation"] == pytest.approx(26 / 35)
    assert document["gpu_time_shares"]["validation"] == pytest.approx(3 / 40)


def test_gpu_time_by_cause_is_shown_without_nvml(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trial = with_gpu_metrics(with_epochs(make_trial(0), (100.0, 110.0, 60.0)), validation_seconds=(1.0,))
    result = make_result(trial, devices_per_trial=1, device="GPU")
    use = gpu_use(result)
    assert use is not None
    assert (use.utilisation, use.levels) == (None, ())
    slots = next(panel for panel in panels(result) if panel.heading == "Slots")
    assert [chart.key for chart in slots.charts] == ["gantt", "speed"]
    assert "ran kernels" not in slots.note


def test_a_search_on_cpus_has_no_gpu_use(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(with_epochs(make_trial(0), (100.0, 110.0, 60.0)))
    assert gpu_use(result) is None
    assert gpu_use(make_result()) is None
    assert json.loads(json_text(result))["gpu_utilisation"] is None


def test_hours_without_a_common_unit_are_no_sum_in_json_csv_and_table(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Each epoch took half an hour. Trial 1 began on two cores, and a resume with a GPU continued it."""
    trials = [
        dataclasses.replace(on_devices(make_trial(0), "CPU", "CPU"), device_counts=(2.0, 2.0)),
        dataclasses.replace(on_devices(make_trial(1), "CPU", "H100"), device_counts=(2.0, 1.0)),
        dataclasses.replace(
            on_devices(make_trial(2, TrialState.STOPPED, (0.5,)), "H100"), device_counts=(1.0,)
        ),
    ]
    result = make_result(*trials, devices_per_trial=1, device="GPU")
    document = json.loads(json_text(result))
    assert (document["compute_hours"], document["compute_hours_saved"]) == (None, None)
    assert document["compute_hours_by_device"] == {"CPU": 3.0, "H100": 1.0}
    assert [trial["compute_hours"] for trial in document["trials"]] == [2.0, None, 0.5]
    assert [line["compute_hours"] for line in csv.DictReader(io.StringIO(csv_text([result])))] == [
        "2.0",
        "",
        "0.5",
    ]
    hours = headings(result).index("hours")
    assert [row(result, trial)[hours] for trial in trials] == ["2.000", "0.500 + 1.000", "0.500"]
    on_gpus = make_result(trials[2], devices_per_trial=1, device="GPU")
    document = json.loads(json_text(on_gpus))
    assert (document["compute_hours"], document["compute_hours_saved"]) == (0.5, 0.5)
