"""Networks, or other groups of trials, are compared at equal cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_rescon.config import TrialState
from tune_rescon.reporting import write_report
from tune_rescon.reporting.incumbents import groups
from tune_rescon.spaces import load_space
from tune_rescon.tuning import StudyResult, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]

#: A trial uses two devices and an epoch takes half an hour (conftest): an epoch costs one device-hour.
OURS, RESNET = "attention", "timm/resnet18"


@pytest.fixture
def result(make_result: MakeResult, make_trial: MakeTrial) -> StudyResult:
    """A search with one trial of our network (3 epochs) and two of a ResNet (5 epochs, interleaved)."""

    def trial(number: int, network: str | None, values: tuple[float, ...], first_ms: int) -> TrialRecord:
        record = make_trial(number, values=values, parameters={"network": network})
        times_ms = tuple(range(first_ms, first_ms + len(values)))
        return dataclasses.replace(record, times_ms=times_ms, at="best")

    return make_result(
        trial(0, None, (0.25, 0.5, 0.375), 100),
        trial(1, "timm/resnet18", (0.125, 0.375, 0.375), 200),
        trial(2, "timm/resnet18", (0.25, 0.75), 300),
        trial(3, "timm/resnet14t", (), 400),
        space=load_space("attention_vs_resnet"),
    )


def test_each_group_has_its_cost_and_best_value_by_cost(result: StudyResult) -> None:
    resnet, ours = groups(result)
    assert (ours.value, ours.trials, ours.epochs, ours.hours) == (None, 1, 3, 3.0)
    assert (resnet.value, resnet.trials, resnet.epochs, resnet.hours) == ("timm/resnet18", 2, 5, 5.0)
    assert [(point.hours, point.value) for point in ours.best] == [(1.0, 0.25), (2.0, 0.5)]
    assert [(point.hours, point.value) for point in resnet.best] == [(1.0, 0.125), (2.0, 0.375), (5.0, 0.75)]
    assert resnet.best_within(3.0) == resnet.best[1]
    assert resnet.best_within(0.5) is None


def test_a_loss_is_better_if_it_is_smaller(result: StudyResult) -> None:
    losses = tuple(dataclasses.replace(trial, maximize=False) for trial in result.trials)
    first, second = groups(dataclasses.replace(result, trials=losses, maximize=False))
    assert (first.value, first.best[-1].value) == ("timm/resnet18", 0.125)
    assert [point.value for point in second.best] == [0.25]


def test_a_failed_trial_is_not_the_best_of_its_group(result: StudyResult) -> None:
    failed = dataclasses.replace(result.trials[2], state=TrialState.FAILED)
    ours, resnet = groups(dataclasses.replace(result, trials=(*result.trials[:2], failed)))
    assert (ours.value, resnet.best[-1].number, resnet.best[-1].value) == (None, 1, 0.375)
    assert resnet.hours == 5.0


def test_the_page_compares_groups_at_equal_cost(result: StudyResult, tmp_path: Path) -> None:
    write_report(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>By network</h2>" in page
    assert "at the dotted line, 3 core-hours, the least" in page
    row = '<tr><td class="left">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>'
    best = "0.5 (trial 0, epoch 2)"
    assert row.format(OURS, 1, 3, "3 core-hours", best, best) in page
    overall_best, best_within_hours = "0.75 (trial 2, epoch 2)", "0.375 (trial 1, epoch 2)"
    assert row.format(RESNET, 2, 5, "5 core-hours", overall_best, best_within_hours) in page


def test_one_network_is_not_compared(result: StudyResult, tmp_path: Path) -> None:
    resnet_only = dataclasses.replace(result, trials=result.trials[1:])
    assert groups(resnet_only) == ()
    write_report(resnet_only, tmp_path / "report.html")
    assert "By network" not in (tmp_path / "report.html").read_text()


def test_the_schedulers_group_by_takes_precedence(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [make_trial(n, parameters={"depth": depth}) for n, depth in enumerate((56, 92, 92))]
    result = make_result(*(dataclasses.replace(trial, times_ms=(1, 2)) for trial in trials))
    assert groups(result) == (), "this space has neither `group_by` nor a network"
    grouped = dataclasses.replace(
        result, space=load_space("digits", ["scheduler={type: asha, group_by: depth}"])
    )
    assert [(group.value, group.trials) for group in groups(grouped)] == [(56, 1), (92, 2)]
