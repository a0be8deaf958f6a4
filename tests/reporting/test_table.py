"""The table at the end of a search, on terminals of any width."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tune_rescon.config import TrialState
from tune_rescon.reporting import print_result, result_table
from tune_rescon.reporting.terminal import ROWS, print_pending
from tune_rescon.tuning import SearchState, StudyResult, TrialCost, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeResult = Callable[..., StudyResult]
MakeCosts = Callable[..., dict[int, TrialCost]]

MANY_PARAMETERS = {
    "depth": 56,
    "image_size": 32,
    "learning_rate": 0.012345678,
    "weight_decay": 0.000123456,
    "label_smoothing": 0.05,
    "drop_path": 0.0123456,
    "step_fractions": "[40, 60]",
}


def printed(result: StudyResult, width: int = 200) -> str:
    out = io.StringIO()
    print_result(result, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def table_lines(result: StudyResult, width: int) -> list[str]:
    return [str(column.header) for column in result_table(result, width=width).columns]


def test_a_search_without_a_trial_is_shown(make_result: MakeResult) -> None:
    text = printed(make_result())
    assert "s: 0 trials" in text
    assert "Best:" not in text


def test_every_state_is_shown_and_counted(
    make_result: MakeResult, trials_of_every_state: list[TrialRecord]
) -> None:
    text = printed(make_result(*trials_of_every_state))
    for state in TrialState:
        assert f"│ {state.value}" in text
        count = sum(trial.state is state for trial in trials_of_every_state)
        assert f"{count} {state.value}" in text


def test_summary_shows_the_best_trial_and_the_files(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(7, values=(0.75, 0.5)))
    lines = printed(result).splitlines()
    assert lines[-5:] == [
        "1 finished; 2 core-hours reserved",
        "Best: trial_0007, val_accuracy 0.5 at epoch 2 of 2 (metric.at: last)",
        f"Files:  {result.folder}",
        f"Report: {result.folder / 'report.html'}",
        "MLflow: http://localhost:5000",
    ]


def test_the_tensorboard_command_is_shown_if_files_exist(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(make_trial(7))
    assert "TensorBoard" not in printed(result)
    (result.folder / "tensorboard").mkdir(parents=True)
    assert f"\nTensorBoard: tensorboard --logdir {result.folder / 'tensorboard'}\n" in printed(result)


def test_the_pareto_front_is_shown_cheapest_first(
    make_result: MakeResult, make_trial: MakeTrial, make_costs: MakeCosts
) -> None:
    trials = [make_trial(n, values=(0.1, value)) for n, value in enumerate((0.9, 0.7, 0.8))]
    result = make_result(*trials, costs=make_costs(4.0, 2.0, 1.0), against="gmacs")
    assert "Front of val_accuracy against gmacs: trial_0002 0.8 at 1, trial_0000 0.9 at 4\n" in printed(
        result
    )
    assert "front" in table_lines(result, 200)
    assert "Front" not in printed(make_result(*trials))


def test_the_reason_of_a_failed_search_is_shown(make_result: MakeResult) -> None:
    failure = "10 trials failed in a row; all of them in trial.py:12: [Errno 5] Input/output error"
    assert f"{failure}\n" in printed(make_result(failure=failure), width=40)


def test_updates_that_mlflow_missed_are_reported(make_result: MakeResult) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False)
    print_pending(make_result(), console, sync="python -m tune_rescon.report s --sync")
    assert out.getvalue() == ""
    print_pending(make_result(pending_updates=3), console, sync="python -m tune_rescon.report s --sync")
    assert "MLflow did not take 3 updates in time; the study has" in out.getvalue()
    assert "python -m tune_rescon.report s --sync" in out.getvalue()
    refused = make_result(pending_updates=3, pending_reason="the experiment 'digits' is deleted.")
    print_pending(refused, console, sync="")
    assert "MLflow did not take 3 updates: the experiment 'digits' is deleted; the study" in out.getvalue()


def test_a_local_store_is_shown_with_the_command_that_opens_it(make_result: MakeResult) -> None:
    text = printed(make_result(tracking_uri="sqlite:////r/mlflow.db"))
    assert "MLflow: mlflow ui --backend-store-uri sqlite:////r/mlflow.db" in text


def test_the_csv_is_named_when_the_table_leaves_trials_out(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(*(make_trial(n) for n in range(30)))
    text = printed(result)
    assert text.count("│ finished") == ROWS
    assert f"All of it: {result.folder / 'trials.csv'}" in text
    assert "All of it" not in printed(make_result(*result.trials[:ROWS]))


def printed_from_record(result: StudyResult) -> list[str]:
    out = io.StringIO()
    print_result(result, Console(file=out, width=200, highlight=False), from_record=True)
    return out.getvalue().splitlines()


def test_only_existing_and_current_files_are_named(make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(*(make_trial(n) for n in range(30)), state=SearchState.INTERRUPTED)
    command = f"python -m tune_rescon.report s --storage {result.folder.parent}"
    assert {f"All of it: {command} --csv", f"Report: {command} --html report.html"} <= {
        *printed_from_record(result)
    }
    result.folder.mkdir()
    for name in ("trials.csv", "report.html"):
        (result.folder / name).touch()
    assert {f"All of it: {result.folder}/trials.csv", f"Report: {result.folder}/report.html"} <= {
        *printed_from_record(result)
    }
    # The search runs, or its driver was killed: the table in the folder is from the previous run.
    without_outcome = replace(result, has_outcome=False)
    assert {f"All of it: {command} --csv", f"Report: {result.folder}/report.html"} <= {
        *printed_from_record(without_outcome)
    }


def test_the_files_of_a_search_at_a_url_are_named_by_their_url(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(*(make_trial(n) for n in range(30)), url="s3://bucket/runs/s")
    assert {
        "All of it: s3://bucket/runs/s/trials.csv",
        "Report: s3://bucket/runs/s/report.html",
    } <= {*printed_from_record(result)}
    # It is not known which files a killed driver has uploaded.
    command = "python -m tune_rescon.report s --storage s3://bucket/runs"
    assert {f"All of it: {command} --csv", f"Report: {command} --html report.html"} <= {
        *printed_from_record(replace(result, has_outcome=False))
    }


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 200])
def test_no_cell_is_wrapped_at_any_width(width: int, make_result: MakeResult, make_trial: MakeTrial) -> None:
    result = make_result(make_trial(0, TrialState.OUT_OF_MEMORY, (0.123456,), MANY_PARAMETERS))
    lines = printed(result, width).splitlines()
    assert max(map(len, (line for line in lines if line[:1] in "┏┡│└"))) <= width
    (cells,) = [line for line in lines if line.startswith("│")]
    assert "out_of_memory" in cells
    assert "0.1235" in cells


def test_a_narrow_terminal_omits_the_cost_columns_first(
    make_result: MakeResult, make_trial: MakeTrial
) -> None:
    result = make_result(make_trial(0, parameters=MANY_PARAMETERS))
    assert table_lines(result, 300)[4:8] == ["best", "params M", "GMACs", "hours"]
    assert table_lines(result, 300)[8:] == [name.replace("_", " ") for name in MANY_PARAMETERS]
    assert table_lines(result, 80) == [
        "trial",
        "state",
        "epochs",
        "val accuracy",
        "depth",
        "image size",
        "learning rate",
        "weight decay",
    ]
    assert table_lines(result, 10) == ["trial", "state", "epochs", "val accuracy"]


def test_brackets_are_shown_literally(make_result: MakeResult, make_trial: MakeTrial) -> None:
    parameters = {"step_fractions": "[40, 60]", "preset": "[bold]x[/bold]"}
    result = make_result(make_trial(0, parameters=parameters), folder=Path("/tmp/[old]/s"))
    text = printed(result)
    assert "[40, 60]" in text
    assert "[bold]x[/bold]" in text
    assert "Files:  /tmp/[old]/s\n" in text


def test_class_names_are_shown_literally(make_result: MakeResult, make_trial: MakeTrial) -> None:
    metric = "val_f1/[/b]cat"
    trial = replace(make_trial(0), metric=metric)
    text = printed(make_result(trial, metric=metric, against="gmacs"))
    assert f"Best: trial_0000, {metric} 0.5 at" in text
    assert f"Front of {metric} against gmacs: " in text
    assert any("[/b]cat" in line for line in text.splitlines() if line.startswith("┃"))
