"""The evaluation of final trainings on the test images, over the seeds."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import ttest_ind

from tune_rescon.config import DatasetConfig, TrialConfig, TrialState
from tune_rescon.data import Account
from tune_rescon.finals import (
    FinalsPresentation,
    Shares,
    TrainingPlan,
    evaluated_configs,
    finals_space,
    find_rows,
    print_evaluation,
    print_published,
    print_reproduction,
)
from tune_rescon.finals.evaluation import Estimate, Lead, evaluation_document
from tune_rescon.finals.published import measured
from tune_rescon.spaces import Resources
from tune_rescon.tuning import SearchState, StudyResult, TrialCost, TrialRecord, best_trial

NAN = math.nan


def trial(number: int, rate: float, accuracy: float, state: TrialState = TrialState.FINISHED) -> TrialRecord:
    metrics = {
        "test_loss": 1 - accuracy,
        "test_accuracy": accuracy,
        "test_top5": 1.0,
        "test_calibration_error": 0.125,
        "test_images_per_second": 100.0,
        "test_accuracy/cat": accuracy - 0.1,
        "test_accuracy/dog": accuracy + 0.1,
    }
    return TrialRecord(
        number=number,
        state=state,
        parameters={"learning_rate": rate},
        metric="test_accuracy",
        maximize=True,
        values=(NAN, accuracy),
        history={
            "train_loss": (1.0, 0.5),
            "epoch_seconds": (1800.0, 1800.0),
            **{name: (NAN, value) for name, value in metrics.items()},
        },
    )


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    configs = [TrialConfig(learning_rate=rate) for rate in (0.1, 0.2)]
    space = finals_space(
        "f",
        configs,
        TrainingPlan(epochs=2, seeds=2, resources=Resources(cpu=1)),
        dataset=DatasetConfig(),
    )
    trials = (
        trial(0, 0.1, 0.7),
        trial(1, 0.2, 0.8),
        trial(2, 0.1, 0.9),
        trial(3, 0.2, 0.82),
        trial(4, 0.1, NAN, TrialState.FAILED),
    )
    return StudyResult(
        name="f",
        space=space,
        folder=tmp_path,
        metric="test_accuracy",
        maximize=True,
        trials=trials,
        costs={one.number: TrialCost(params_m=1.5, gmacs=0.25) for one in trials},
        devices_per_trial=1,
        device="CPU",
        rungs=(2,),
        best=best_trial(trials, by_mean=True),
        best_config={},
        state=SearchState.FINISHED,
        tracking_uri="",
    )


def printed_evaluation(result: StudyResult) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_evaluation(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_configs_are_ranked_by_mean_over_seeds(result: StudyResult) -> None:
    first, second = evaluated_configs(result)
    assert [one.number for one in first.trials] == [1, 3]
    assert first.figures["test_accuracy"].mean == pytest.approx(0.81)
    assert first.figures["test_accuracy"].spread == pytest.approx(0.02 / math.sqrt(2))
    assert second.figures["test_accuracy"].values == (0.7, 0.9)
    assert first.by_class["dog"].mean == pytest.approx(0.91)
    assert (first.hours, first.params_m) == (2.0, 1.5)
    assert result.best is not None
    assert result.best.number == 1


def test_a_lead_within_the_spread_of_seeds_is_reported(result: StudyResult) -> None:
    text = printed_evaluation(result)
    assert "0.81 ± 0.014" in text
    assert "The first of 2 was chosen by these very images" in text
    assert "Mean ± standard deviation over 2 trainings." in text
    assert "Its lead on the second, 0.01 ± " in text
    assert "(95% interval), is within what the seed alone changes." in text
    clear_lead = dataclasses.replace(
        result, trials=(*(t for t in result.trials if t.number != 2), trial(2, 0.1, 0.71))
    )
    assert "Its lead" not in printed_evaluation(clear_lead)


@pytest.mark.parametrize(
    ("test_images", "fraction", "message"),
    [
        (5, None, "finalists on the test images"),
        (0, 0.2, "finalists on the test images"),
        (0, None, "finalists on the validation images (there are no test images)"),
    ],
)
def test_the_number_and_source_of_test_images_are_shown(
    result: StudyResult, test_images: int, fraction: float | None, message: str
) -> None:
    counts = {"train": (9, 9), "val": (2, 2), "test": (test_images, 0)}
    dataset = dataclasses.replace(result.space.dataset, test_fraction=fraction)
    changed = dataclasses.replace(
        result,
        space=result.space.model_copy(update={"dataset": dataset}),
        accounts={dataset.name: Account(class_names=("a", "b"), per_class=counts)},
    )
    assert message in printed_evaluation(changed)


def test_a_single_seed_per_network_is_reported_as_inconclusive(result: StudyResult) -> None:
    for trials in (result.trials[:2], result.trials[:3]):
        text = printed_evaluation(dataclasses.replace(result, trials=trials))
        assert "One training of a network cannot distinguish a lead from the effect of the seed" in text
        assert "`--seeds 3`" in text
        assert "within what the seed alone changes" not in text
    assert "over 1 to 2 trainings" in text


def test_the_interval_matches_welchs_t_test() -> None:
    first, second = Estimate.of([0.80, 0.82, 0.81]), Estimate.of([0.78, 0.79])
    lead = Lead.of(first, second, maximize=True)
    interval = ttest_ind(first.values, second.values, equal_var=False).confidence_interval(0.95)
    assert lead.difference - lead.margin == pytest.approx(interval.low)
    assert lead.difference + lead.margin == pytest.approx(interval.high)
    assert lead.is_beyond_seeds == (interval.low > 0)
    assert Lead.of(second, first, maximize=False).difference == pytest.approx(lead.difference)
    same = Lead.of(Estimate.of([0.5, 0.5]), Estimate.of([0.5, 0.5]), maximize=True)
    assert (same.is_known, same.is_beyond_seeds) == (True, False)


def test_a_single_finalist_has_no_selection_note(result: StudyResult) -> None:
    single = dataclasses.replace(result, trials=(result.trials[1],))
    text = printed_evaluation(single)
    assert "One training each." in text
    assert "chosen" not in text
    assert printed_evaluation(dataclasses.replace(result, trials=())) == ""


def test_the_document_has_every_metric_and_no_nan(result: StudyResult) -> None:
    document = json.loads(json.dumps(evaluation_document(result, evaluated_configs(result)), allow_nan=False))
    first = document["finalists"][0]
    assert first["trials"] == [1, 3]
    assert first["test_accuracy"]["values"] == [0.8, 0.82]
    assert first["accuracy_by_class"]["cat"]["mean"] == pytest.approx(0.71)
    single = dataclasses.replace(result, trials=(result.trials[1],))
    assert (
        evaluation_document(single, evaluated_configs(single))["finalists"][0]["test_loss"]["spread"] is None
    )


def test_the_mlflow_note_begins_with_the_table_of_finalists(result: StudyResult) -> None:
    assert FinalsPresentation().note(result).startswith("| trials | accuracy |")


def test_published_values_are_shown_beside_measured_ones(result: StudyResult) -> None:
    noise, rescon = find_rows(["attention92-noise30"])[0], find_rows(["rescon-cifar10-92-32"])[0]
    assert measured(noise, result)["test_error"].mean == pytest.approx(19.5)
    assert measured(rescon, result)["train_loss"].mean == 0.5
    assert measured(noise, dataclasses.replace(result, trials=())) == {}
    console = Console(file=io.StringIO(), width=200)
    print_reproduction({noise: result}, Shares(schedule=0.01, images=0.01), console)
    print_published(console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "test error % 5.79" in text
    assert "test error % 19.5 ± 8.2" in text
    assert "2 of 205 epochs, 500 of 50,000 images, 500 of 10,000 test images" in text
