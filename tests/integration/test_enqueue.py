"""``tune_rescon.enqueue`` adds a trial with given values, and ``tune_rescon.stop`` stops a trial."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typing_extensions import override

from tune_rescon.config import TrialState
from tune_rescon.enqueue import main
from tune_rescon.spaces import load_space
from tune_rescon.stop import main as stop
from tune_rescon.testing import learn_nothing
from tune_rescon.tuning import (
    RunOptions,
    SearchCallback,
    SearchLocation,
    StudyResult,
    TrialRecord,
    enqueue_trial,
    read_search,
    run_search,
)

SPACE = ["initial=[]", "budget.concurrent=1", "fidelity.max=1", "scheduler.type=none"]


def search(options: RunOptions, trials: int, *callbacks: SearchCallback) -> StudyResult:
    space = load_space("digits", [*SPACE, f"budget.trials={trials}"])
    return run_search(space, options, trainable=learn_nothing, callbacks=callbacks)


@pytest.mark.server
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_an_ended_search_runs_the_enqueued_trial_when_resumed(
    options: RunOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    before = search(options, 1)
    arguments = ["s", "--storage", str(options.storage), "--set", "depth=92", "--set", "learning_rate=0.25"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("trial_0001 waits: depth=92 learning_rate=0.25. s runs it")
    assert isinstance(options.storage, Path)
    assert len(read_search(SearchLocation(storage=options.storage), "s").trials) == 1, "it has not run"
    after = search(dataclasses.replace(options, resume=True), 3)
    assert len(after.trials) == 3
    assert after.trials[0] == dataclasses.replace(before.trials[0], checkpoint=after.trials[0].checkpoint)
    parameters = after.trials[1].parameters
    assert (parameters["depth"], parameters["learning_rate"]) == (92, 0.25)
    assert 0 <= parameters["drop_path"] <= 0.1, "the sampler draws missing values"


class EnqueueTrial(SearchCallback):
    """Enqueues a trial while the first one runs, as another program would."""

    def __init__(self, storage: Path) -> None:
        self._location = SearchLocation(storage=storage)

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        if trial.number == 0:
            assert enqueue_trial(self._location, "s", ["depth=56", "learning_rate=0.125"])[0] == 1


@pytest.mark.server
@pytest.mark.usefixtures("without_ray_and_mlflow")
@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (["budget.trials=1"], "--resume s --trials 2"),
        (["budget.trials=9", "parameters={depth: {type: categorical, choices: [56]}}"], "--resume s"),
    ],
    ids=["all-trials-began", "space-is-exhausted"],
)
def test_a_search_that_ends_names_the_enqueued_trials_that_wait(
    settings: list[str], command: str, options: RunOptions, progress: list[str]
) -> None:
    assert isinstance(options.storage, Path)
    location = SearchLocation(storage=options.storage)

    class EnqueueLate(SearchCallback):
        @override
        def on_trial_start(self, trial: TrialRecord) -> None:
            enqueue_trial(location, "s", ["depth=56"])

    space = load_space("digits", [*SPACE, *settings])
    result = run_search(space, options, trainable=learn_nothing, callbacks=[EnqueueLate()])
    assert (len(result.trials), result.foreign) == (1, (1,))
    assert progress[-1] == f"Enqueued trials that have not run: trial_0001. To run them: {command}"


@pytest.mark.server
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_running_search_runs_the_enqueued_trial_next(options: RunOptions) -> None:
    assert isinstance(options.storage, Path)
    result = search(options, 4, EnqueueTrial(options.storage))
    assert [trial.number for trial in result.trials] == [0, 1, 2, 3]
    assert result.trials[1].parameters["learning_rate"] == 0.125
    assert result.foreign == ()


@pytest.mark.server
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_invalid_values_are_all_reported_in_one_error(
    options: RunOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    search(options, 1)
    wrong = ["learning_rate=9", "depht=56", "depth=57", "drop_path=0.05", "weight_decay"]
    arguments = [part for setting in wrong for part in ("--set", setting)]
    assert main(["s", "--storage", str(options.storage), *arguments]) == 2
    assert capsys.readouterr().err == (
        "Error: --set depht: unknown parameter 'depht' (did you mean 'depth'?); known: depth, drop_path,"
        " label_smoothing, learning_rate, weight_decay.\n"
        "--set depth: must be one of the choices 56, 92, but got 57.\n"
        "--set drop_path: must be left out unless depth is 92, but got 0.05.\n"
        "--set learning_rate: must be in [0.03, 0.3], but got 9.\n"
        "--set weight_decay: --set takes KEY=VALUE, but got 'weight_decay'.\n"
    )
    assert main(["s", "--storage", str(options.storage)]) == 2
    assert "at least one value must be given, but got none. Give --set KEY=VALUE." in capsys.readouterr().err
    assert isinstance(options.storage, Path)
    assert search(dataclasses.replace(options, resume=True), 1).foreign == ()


def test_enqueue_to_a_missing_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["s", "--storage", str(tmp_path), "--set", "depth=56"]) == 2
    assert "no search named 's'" in capsys.readouterr().err
    assert main(["s", "--storage", "s3://bucket/runs", "--set", "depth=56"]) == 2
    assert "the study must be in a database that this machine reaches" in capsys.readouterr().err


class StopTrial(SearchCallback):
    """Stops a trial while it runs, as another program would."""

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    @override
    def on_trial_start(self, trial: TrialRecord) -> None:
        if trial.number == 1:
            assert stop(["s", "--storage", str(self._storage), "--trial", "1"]) == 0


@pytest.mark.server
@pytest.mark.usefixtures("without_ray_and_mlflow")
def test_a_running_search_stops_the_trial_and_starts_the_next(
    options: RunOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(options.storage, Path)
    space = load_space("digits", [*SPACE, "fidelity.max=3", "budget.trials=3"])
    callback = StopTrial(options.storage)
    result = run_search(space, options, trainable=learn_nothing, callbacks=[callback])
    assert [(trial.state, trial.epochs) for trial in result.trials] == [
        (TrialState.FINISHED, 3),
        (TrialState.STOPPED, 1),
        (TrialState.FINISHED, 3),
    ]
    assert "stopped after epoch 1, as `tune-rescon stop` requested" in result.trials[1].notes
    assert "s stops trial_0001 after the current epoch" in capsys.readouterr().out
    enqueue_trial(SearchLocation(storage=options.storage), "s", ["depth=56"])
    for number, message in (
        ("1", "1, which is stopped"),
        ("3", "3, which waits to be run"),
        ("7", "7, which it does not have"),
    ):
        assert stop(["s", "--storage", str(options.storage), "--trial", number]) == 2
        stderr = capsys.readouterr().err
        assert f"--trial: must be a trial of s that has begun and not ended, but got {message}." in stderr


def test_stop_without_trial_or_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stop(["s", "--storage", str(tmp_path)]) == 2
    assert "--trial" in capsys.readouterr().err
    assert stop(["s", "--storage", str(tmp_path), "--trial", "0"]) == 2
    assert "no search named 's'" in capsys.readouterr().err
    assert stop(["s", "--storage", "s3://bucket/runs", "--trial", "0"]) == 2
    assert "the study must be in a database that this machine reaches" in capsys.readouterr().err
