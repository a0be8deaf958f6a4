"""TensorBoard's files, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tune_rescon.config import TrialState
from tune_rescon.errors import ConfigError
from tune_rescon.metric_names import METRICS
from tune_rescon.search import main
from tune_rescon.spaces import Space, load_space
from tune_rescon.tuning import Decision, TrialRecord, Verdict, tensorboard_callback
from tune_rescon.tuning.tensorboard_callback import EventFiles, check_tensorboard

pytestmark = pytest.mark.torch  # imports it

CONTINUE = Verdict(decision=Decision.CONTINUE)


def trial(number: int, *values: float, state: TrialState = TrialState.RUNNING) -> TrialRecord:
    return TrialRecord(
        number=number,
        state=state,
        parameters={"depth": 56, "learning_rate": 0.125, "weight_decay": 1e-4, "label_smoothing": 0.05},
        metric="val_accuracy",
        maximize=True,
        values=values,
        history={name: values if name == "val_accuracy" else (0.5,) * len(values) for name in METRICS},
        times_ms=tuple(1_700_000_000_000 + 1000 * epoch for epoch in range(len(values))),
    )


@pytest.fixture
def space() -> Space:
    return load_space("digits")


def run(files: EventFiles, number: int, values: tuple[float, ...], *, state: TrialState) -> None:
    files.on_trial_start(trial(number))
    for epoch in range(1, len(values) + 1):
        files.on_epoch(trial(number, *values[:epoch]), dict.fromkeys(METRICS, 0.5), CONTINUE)
    files.on_trial_end(trial(number, *values, state=state))


def read(folder: Path, number: int) -> EventAccumulator:
    return EventAccumulator(str(folder / f"trial_{number:04d}")).Reload()


def points(folder: Path, number: int) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in read(folder, number).Scalars("val_accuracy")]


def hparams(folder: Path, number: int) -> dict[str, object]:
    data = HParamsPluginData.FromString(
        read(folder, number).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    chosen = data.session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in chosen.items()}


def test_each_epoch_is_a_point_at_its_time(tmp_path: Path, space: Space) -> None:
    with EventFiles(tmp_path, space) as files:
        run(files, 7, (0.25, 0.5), state=TrialState.STOPPED)
    assert points(tmp_path, 7) == [(1, 0.25), (2, 0.5)]
    records = read(tmp_path, 7)
    assert set(records.Tags()["scalars"]) == set(METRICS)
    assert [point.wall_time for point in records.Scalars("train_loss")] == [1_700_000_000, 1_700_000_001]


def test_parameters_are_written_and_inactive_ones_are_none(tmp_path: Path, space: Space) -> None:
    with EventFiles(tmp_path, space) as files:
        run(files, 0, (0.5,), state=TrialState.FINISHED)
    assert hparams(tmp_path, 0) == {
        "depth": 56,
        "learning_rate": 0.125,
        "weight_decay": 1e-4,
        "label_smoothing": 0.05,
        "drop_path": "none",
    }


def test_parameters_of_an_earlier_version_of_the_space_are_written(tmp_path: Path) -> None:
    space = load_space(
        "digits", ["parameters={learning_rate: {type: float, low: 0.1, high: 0.3}}", "initial=[]"]
    )
    with EventFiles(tmp_path, space) as files:
        run(files, 0, (0.5,), state=TrialState.FINISHED)
    assert hparams(tmp_path, 0)["depth"] == 56


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (TrialState.FINISHED, api_pb2.STATUS_SUCCESS),
        (TrialState.STOPPED, api_pb2.STATUS_SUCCESS),
        (TrialState.DIVERGED, api_pb2.STATUS_FAILURE),
        (TrialState.FAILED, api_pb2.STATUS_FAILURE),
    ],
)
def test_hparams_show_the_trial_state(state: TrialState, status: int, tmp_path: Path, space: Space) -> None:
    with EventFiles(tmp_path, space) as files:
        run(files, 0, (0.5,), state=state)
    metadata = read(tmp_path, 0).SummaryMetadata("_hparams_/session_end_info")
    data = HParamsPluginData.FromString(metadata.plugin_data.content)
    assert data.session_end_info.status == status


def test_trials_that_a_restored_record_lacks_are_not_shown(tmp_path: Path, space: Space) -> None:
    with EventFiles(tmp_path, space) as files:
        for number in range(3):
            run(files, number, (0.5,), state=TrialState.FINISHED)
    (tmp_path / "trial_of_mine").mkdir()
    with EventFiles(tmp_path, space) as files:
        files.on_search_start([trial(0, 0.5, state=TrialState.FINISHED)])
    assert {path.name for path in tmp_path.iterdir()} == {"trial_0000", "trial_of_mine"}


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_resumed_search_has_each_point_once(lost: int, tmp_path: Path, space: Space) -> None:
    values = (0.25, 0.5, 0.75)
    with EventFiles(tmp_path, space) as files:
        run(files, 0, values[: 3 - lost], state=TrialState.INTERRUPTED)
        run(files, 1, values, state=TrialState.FINISHED)
    with EventFiles(tmp_path, space) as files:
        files.on_search_start(
            [trial(0, *values, state=TrialState.INTERRUPTED), trial(1, *values, state=TrialState.FINISHED)]
        )
        files.on_trial_start(trial(0, *values))
        files.on_epoch(trial(0, *values, 0.875), dict.fromkeys(METRICS, 0.5), CONTINUE)
        files.on_trial_end(trial(0, *values, 0.875, state=TrialState.FINISHED))
    assert points(tmp_path, 0) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 0.875)]
    assert points(tmp_path, 1) == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_a_promoted_trial_has_each_point_once(tmp_path: Path, space: Space) -> None:
    with EventFiles(tmp_path, space) as files:
        run(files, 0, (0.25,), state=TrialState.PAUSED)
        files.on_trial_start(trial(0, 0.25))
        files.on_epoch(trial(0, 0.25, 0.5), dict.fromkeys(METRICS, 0.5), CONTINUE)
        files.on_trial_end(trial(0, 0.25, 0.5, state=TrialState.FINISHED))
    assert points(tmp_path, 0) == [(1, 0.25), (2, 0.5)]


def test_no_point_is_lost_while_the_disk_fails(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, calls = tensorboard_callback._TrialFiles.write, iter(range(100))

    def fail_second(files: tensorboard_callback._TrialFiles, trial: TrialRecord) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(files, trial)

    monkeypatch.setattr(tensorboard_callback._TrialFiles, "write", fail_second)
    with EventFiles(tmp_path, space) as files:
        run(files, 0, (0.25, 0.5, 0.75), state=TrialState.FINISHED)
    assert points(tmp_path, 0) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert "No space left on device" in caplog.text


def test_a_missing_tensorboard_is_refused_naming_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed: dict[str, object] = {}
    monkeypatch.setattr(tensorboard_callback, "find_spec", installed.get)
    with pytest.raises(ConfigError, match=r"tune_rescon\[tensorboard\]"):
        check_tensorboard()
    storage = tmp_path / "runs"
    assert main(["--space", "digits", "--tensorboard", "--storage", str(storage)]) == 2
    assert "--tensorboard: TensorBoard's files are written by" in capsys.readouterr().err
    assert not storage.exists()
