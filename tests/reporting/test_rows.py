"""The rows of a trial that the table and the page share."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from datetime import datetime

import pytest
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.reporting.formats import (
    csv_text,
    differences,
    headings,
    json_text,
    markdown_text,
    ranked,
    row,
)
from tune_rescon.reporting.page import render_page
from tune_rescon.reporting.terminal import print_comparison
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import StudyResult, TrialCost, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]


def test_a_row_has_a_cell_under_every_heading(
    make_result: MakeResult, one_of_each: list[TrialRecord]
) -> None:
    result = make_result(*one_of_each)
    for trial in result.trials:
        assert len(row(result, trial)) == len(headings(result))


def test_row_formats_each_column(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(0, TrialState.STOPPED, (0.75, 0.123456)))
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert cells == {
        "trial": "0",
        "state": "stopped",
        "epochs": "2",
        "val_accuracy": "0.1235",
        "best": "0.75",
        "params M": "0.85",
        "GMACs": "0.125",
        "hours": "2.000",
        "depth": "56",
        "learning_rate": "0.1",
    }


def test_a_two_objective_search_has_a_pareto_front_column(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    result = make_result(*trials, against="gmacs", costs=make_costs(4.0, 2.0, 1.0))
    column = headings(result).index("front")
    assert [row(result, trial)[column] for trial in trials] == ["*", "", "*"]


@pytest.mark.parametrize("values", [(), (math.nan,)])
def test_a_missing_value_is_a_dash(
    values: tuple[float, ...], make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(
        make_trial(0, TrialState.FAILED, values, {"depth": 56}),
        make_trial(1, parameters={"depth": 92, "drop_path": 0.1}),
    )
    cells = dict(zip(headings(result), row(result, result.trials[0]), strict=True))
    assert (cells["val_accuracy"], cells["best"], cells["drop_path"]) == ("-", "-", "-")


def test_an_empty_search_has_no_rows(make_result: MakeResult) -> None:
    assert ranked(make_result()) == []
    assert "val_accuracy" in headings(make_result())


def test_trials_are_ranked_best_first(make_result: MakeResult, make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, TrialState.FAILED, ()),
        make_trial(1, TrialState.STOPPED, (0.9,)),
        make_trial(2, values=(0.1, 0.5)),
        make_trial(3, values=(0.1, 0.6)),
    ]
    assert [trial.number for trial in ranked(make_result(*trials))] == [3, 2, 1, 0]


def test_searches_with_incomparable_values_are_reported(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    """Comparability depends on the digest of the images and the metric, not on paths and names."""
    first = make_result(make_trial(0), images={"digits": "0123"})
    same = make_result(make_trial(0), name="same", images={"digits": "0123"})
    earlier = make_result(make_trial(0), name="earlier")
    assert differences([first, same, earlier]) == []
    split = make_result(make_trial(0), name="split", images={"digits": "4567"})
    other = make_result(
        make_trial(0), name="other", space=load_space("digits", ["dataset.name=fashion_mnist"])
    )
    loss = make_result(make_trial(0), name="loss", metric="val_loss", maximize=False)
    assert differences([first, same, split, other, loss]) == [
        "split was evaluated on other images than s: do not compare their values",
        "other was evaluated on other images than s (digits and fashion_mnist): do not compare their values",
        "s was ranked by val_accuracy and loss by val_loss: do not compare their values",
    ]


def test_hours_of_cores_are_not_compared_with_hours_of_gpus(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    cores = make_result(make_trial(0), name="cores")
    gpus = make_result(make_trial(0), name="gpus", device="GPU")
    assert differences([cores, gpus, cores]) == [
        "The hours of cores are core-hours, and those of gpus GPU-hours: do not compare them"
    ]


def test_searches_over_different_datasets_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    choices = "parameters.dataset={type: categorical, choices: [digits, fashion_mnist]}"
    space = load_space("digits", [choices])
    images = {"digits": "0123", "fashion_mnist": "4567"}
    trials = [make_trial(n, parameters={"dataset": name}) for n, name in enumerate(images)]
    two_datasets = make_result(*trials, name="both", space=space, images=images)
    one_dataset = make_result(make_trial(0), name="one", images={"digits": "0123"})
    assert differences([two_datasets, two_datasets]) == []
    (line,) = differences([one_dataset, two_datasets])
    assert "both was evaluated on other images than one (digits and digits, fashion_mnist)" in line
    changed = make_result(*trials, name="new", space=space, images={**images, "fashion_mnist": "89ab"})
    assert differences([two_datasets, changed]) == [
        "new was evaluated on other images than both: do not compare their values"
    ]
    # Both searches have trials on the digits alone.
    digits_only = make_result(trials[0], name="begun", space=space, images=images)
    assert differences([one_dataset, digits_only]) == []


def test_metric_at_best_and_metric_at_last_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    best = make_result(make_trial(0), space=load_space("digits", ["metric.at=best"]))
    last = make_result(make_trial(0), name="last", space=load_space("digits", ["metric.at=last"]))
    assert differences([best, best]) == []
    assert differences([best, last]) == [
        "s counts val_accuracy at the best epoch and last at the last: do not compare their values"
    ]


def test_functions_of_one_name_are_different_metrics(make_result: MakeResult, make_trial: MakeTrial) -> None:
    ours, theirs = (
        make_result(
            make_trial(0),
            name=name,
            metric="val_score",
            space=load_space(
                "digits", [f"metric={{name: val_score, mode: max, log: ['{name}.metrics:score']}}"]
            ),
        )
        for name in ("ours", "theirs")
    )
    assert differences([ours, ours]) == []
    (line,) = differences([ours, theirs])
    assert line == (
        "ours was ranked by val_score (ours.metrics:score) and theirs by val_score (theirs.metrics:score):"
        " do not compare their values"
    )


def test_values_of_a_metric_with_changed_code_are_not_comparable(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    by_score = load_space("digits", ["metric={name: val_score, mode: max, log: ['ours.metrics:score']}"])
    logged = load_space("digits", ["metric.log=['ours.metrics:score']"])

    def result(name: str, digest: str, space: Space = by_score) -> StudyResult:
        result = make_result(make_trial(0), name=name, metric=space.metric.name, space=space)
        return dataclasses.replace(result, code={"ours.metrics:score": digest} if digest else {})

    assert differences([result("a", "0"), result("b", "0"), result("earlier", "")]) == []
    assert differences([result("a", "0"), result("b", "1")]) == [
        "a and b had different code of ours.metrics:score: do not compare their values"
    ]
    # Trials are not ranked by a metric that is only logged.
    assert differences([result("a", "0", logged), result("b", "1", logged)]) == []


def test_every_format_shows_what_cannot_be_compared(make_result: MakeResult, make_trial: MakeTrial) -> None:
    first = make_result(make_trial(0), images={"digits": "0123"})
    split = make_result(make_trial(0), name="split", images={"digits": "4567"}, metric="val_loss")
    (line,) = differences([first, split])
    assert json.loads(json_text(first, [split]))["differences"] == [line]
    assert json.loads(json_text(first))["differences"] == []
    assert line in markdown_text(first, [split])
    assert line in render_page(first, compared=[split], written=datetime(2026, 1, 1))
    console = Console(file=io.StringIO(), width=250)
    print_comparison([first, split], console)
    assert isinstance(console.file, io.StringIO)
    assert line in console.file.getvalue()
    rows = list(csv.DictReader(io.StringIO(csv_text([first, split]))))
    assert [row["metric"] for row in rows] == ["val_accuracy", "val_loss"]
