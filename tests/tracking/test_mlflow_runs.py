"""States sent to a real store, and the runs that MLflow then shows."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from tests.mlflow_in_process import InProcessWorker
from tests.tracking.conftest import destination
from tune_rescon.tracking import Images, MlflowWriter, SearchRunState, TrialRunState, mlflow_runs
from tune_rescon.tracking.mlflow_runs import MlflowRunSync
from tune_rescon.tracking.run_state import RunState

MakeWriter = Callable[..., MlflowWriter]
MakeSync = Callable[[], MlflowRunSync]

TIMEOUT = 200.0
PARAMS = {"depth": "56", "drop_path": "none"}


class RunsOfStore:
    """The runs of an MLflow store."""

    def __init__(self, uri: str) -> None:
        self.client = mlflow.MlflowClient(uri)

    def runs(self) -> list[Run]:
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(ids))

    def parent(self) -> Run:
        (run,) = [run for run in self.runs() if "tune_rescon.trial" not in run.data.tags]
        return run

    def child(self, number: int) -> Run:
        (run,) = [run for run in self.runs() if run.data.tags.get("tune_rescon.trial") == str(number)]
        return run

    def series(self, number: int, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.child(number).info.run_id, metric)
        return sorted((point.step, point.value) for point in history)


@pytest.fixture
def mlflow_store(store: str) -> RunsOfStore:
    return RunsOfStore(store)


def send(writer: MlflowWriter, *run_states: RunState) -> dict[int, str]:
    """Send the states and close the writer; return the created runs by trial number."""
    for run_state in run_states:
        writer.submit(run_state)
    assert writer.close(TIMEOUT) == 0
    return dict(writer.opened_runs())


VALUES = (0.5, 0.75, 0.625)


def trial(epochs: int = 0, state: str = "running", *, number: int = 0, **changes: Any) -> TrialRunState:
    """A trial after the given number of epochs; equal at every call."""
    history = {"val_accuracy": VALUES[:epochs], "train_loss": (1.0, 0.5, 0.25)[:epochs]}
    return TrialRunState(
        number=number,
        state=state,
        params=changes.pop("params", PARAMS),
        history=history if epochs else {},
        times_ms=(1000, 2000, 3000)[:epochs],
        closing={"best_epoch": 2.0} if state not in ("running", "paused", "interrupted") else {},
        started_ms=500,
        ended_ms=4000,
        **changes,
    )


def test_non_utf8_names_are_shown_escaped(store: str, mlflow_store: RunsOfStore, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    writer_destination = dataclasses.replace(destination(store, "s", tmp_path / "artifacts"), experiment=name)
    writer = MlflowWriter(writer_destination, open_worker=InProcessWorker)
    writer.start()
    images = Images(name=name, digest="d", counts={"train": 1})
    search = SearchRunState(id="1a", place=name, tags={"path": name}, note=name, images=(images,))
    send(writer, search, trial(1, "failed", params={"init_from": name}, error=name, notes=(name,)))
    assert mlflow_store.client.get_experiment_by_name("caf\\xe9") is not None
    parent, child = mlflow_store.parent(), mlflow_store.child(0)
    escaped = [parent.data.tags["path"], child.data.params["init_from"], child.data.tags["tune_rescon.error"]]
    assert escaped == ["caf\\xe9"] * 3
    assert parent.inputs is not None
    assert parent.inputs.dataset_inputs[0].dataset.name == "caf\\xe9"


VAL_ACCURACY = list(enumerate(VALUES, 1))


def test_child_runs_have_one_parent_and_the_documented_tags(
    make_writer: MakeWriter, mlflow_store: RunsOfStore
) -> None:
    opened = send(
        make_writer(),
        SearchRunState(id="1a", tags={"version.torch": "2.15"}),
        trial(1, "finished"),
        trial(1, "finished", number=12),
        SearchRunState(
            id="1a",
            state="finished",
            tags={"version.torch": "2.15"},
            closing={"best_val_accuracy": 0.9},
            note="**best**",
        ),
    )
    parent = mlflow_store.parent()
    assert parent.info.run_name == "s"
    assert parent.data.tags.items() >= {"tune_rescon.search": "s", "version.torch": "2.15"}.items()
    assert parent.data.tags["mlflow.note.content"] == "**best**"
    assert parent.data.metrics == {"best_val_accuracy": 0.9}
    assert set(opened) == {0, 12}
    for number, name in ((0, "trial_0000"), (12, "trial_0012")):
        child = mlflow_store.child(number)
        assert child.info.run_id == opened[number]
        assert child.info.run_name == name
        assert child.data.params == PARAMS
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["tune_rescon.search"] == "s"
        assert (child.info.start_time, child.info.end_time) == (500, 4000)


def test_the_last_best_value_is_shown_also_if_the_clock_was_set_back(
    make_sync: MakeSync, mlflow_store: RunsOfStore
) -> None:
    for best, ended_ms in ((0.8, 9000), (0.9, 5000), (0.7, 6000), (0.7, 7000)):
        sync = make_sync()
        sync.send(SearchRunState(id="1a"))
        closing = {"best_val_accuracy": best}
        sync.send(SearchRunState(id="1a", state="finished", closing=closing, ended_ms=ended_ms))
        parent = mlflow_store.parent()
        assert parent.data.metrics == closing
        assert parent.info.end_time == ended_ms
    history = mlflow_store.client.get_metric_history(parent.info.run_id, "best_val_accuracy")
    assert [point.value for point in history] == [0.8, 0.9, 0.7]


def test_every_metric_is_logged_once_however_epochs_are_batched(
    make_sync: MakeSync, mlflow_store: RunsOfStore
) -> None:
    sync = make_sync()
    sync.send(SearchRunState(id="1a"))
    for run_state in (trial(), trial(1), trial(1), trial(3), trial(3, "stopped"), trial(3, "stopped")):
        sync.send(run_state)
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
    assert mlflow_store.series(0, "train_loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert mlflow_store.series(0, "best_epoch") == [(3, 2.0)]


def test_more_epochs_than_a_request_holds_are_sent_in_several_requests(
    make_sync: MakeSync, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_runs, "ENTITIES_A_REQUEST", 5 + len(PARAMS))
    sizes = []
    log_batch = mlflow.MlflowClient.log_batch

    def record_size(client: mlflow.MlflowClient, *args: Any, **kwargs: Any) -> None:
        sizes.append(len(kwargs["metrics"]))
        log_batch(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", record_size)
    sync = make_sync()
    sync.send(SearchRunState(id="1a"))
    sync.send(trial(3))
    assert sizes == [4, 2]
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
    assert mlflow_store.child(0).data.params == PARAMS


def test_a_failure_during_a_long_trial_splits_no_epoch(
    make_sync: MakeSync, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client divides a request of more than 1,000 metrics, parameters and tags."""
    values = [float(epoch) for epoch in range(500)]
    long_trial = dataclasses.replace(
        trial(params={**PARAMS, "width": "1.0"}),
        history={"val_accuracy": values, "train_loss": values},
        times_ms=[1000 * epoch for epoch in range(500)],
    )
    log_batch: Any = SqlAlchemyStore.log_batch
    requests = 0

    def fail_at_second_request(store: SqlAlchemyStore, *args: Any, **kwargs: Any) -> None:
        nonlocal requests
        requests += 1
        if requests == 2:
            raise ConnectionError("the driver dies")
        log_batch(store, *args, **kwargs)

    sync = make_sync()
    sync.send(SearchRunState(id="1a"))
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "log_batch", fail_at_second_request)
        with pytest.raises(ConnectionError):
            sync.send(long_trial)
    assert 400 < len(mlflow_store.series(0, "val_accuracy")) < 500
    resumed = make_sync()
    resumed.send(SearchRunState(id="1a"))
    resumed.send(long_trial)
    for metric in long_trial.history:
        assert [value for _, value in mlflow_store.series(0, metric)] == values


def test_parameters_are_logged_before_the_first_epoch(make_sync: MakeSync, mlflow_store: RunsOfStore) -> None:
    sync = make_sync()
    sync.send(SearchRunState(id="1a"))
    sync.send(trial(0))
    assert mlflow_store.child(0).data.params == PARAMS


def test_the_last_request_of_a_run_has_its_final_state(
    make_sync: MakeSync, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of a driver that dies before is completed by the next driver."""
    monkeypatch.setattr(mlflow_runs, "ENTITIES_A_REQUEST", 5)
    log_batch = mlflow.MlflowClient.log_batch
    sync = make_sync()
    sync.send(SearchRunState(id="1a"))
    remaining = 1

    def fail_after_first_request(client: mlflow.MlflowClient, *args: Any, **kwargs: Any) -> None:
        nonlocal remaining
        if remaining == 0:
            raise ConnectionError("the driver dies")
        remaining -= 1
        log_batch(client, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", fail_after_first_request)
        with pytest.raises(ConnectionError):
            sync.send(trial(3, "finished"))
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY[:1]
    assert mlflow_store.child(0).data.tags["tune_rescon.state"] == "running"
    resumed = make_sync()
    resumed.send(SearchRunState(id="1a"))
    resumed.send(trial(3, "finished"))
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
    assert mlflow_store.series(0, "best_epoch") == [(3, 2.0)]
    assert mlflow_store.child(0).info.status == "FINISHED"


def test_nan_is_logged_as_nan(make_writer: MakeWriter, mlflow_store: RunsOfStore) -> None:
    diverged = TrialRunState(number=0, history={"val_accuracy": (math.nan,)}, times_ms=(1,))
    send(make_writer(), SearchRunState(id="1a"), diverged)
    ((step, value),) = mlflow_store.series(0, "val_accuracy")
    assert step == 1
    assert math.isnan(value)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("running", "RUNNING"),
        ("finished", "FINISHED"),
        ("stopped", "FINISHED"),
        ("interrupted", "KILLED"),
        ("paused", "SCHEDULED"),
        ("diverged", "FAILED"),
        ("out_of_memory", "FAILED"),
        ("failed", "FAILED"),
    ],
)
def test_each_state_sets_the_runs_status(
    state: str, status: str, make_writer: MakeWriter, mlflow_store: RunsOfStore
) -> None:
    send(make_writer(), SearchRunState(id="1a"), trial(1, state))
    child = mlflow_store.child(0)
    assert child.info.status == status
    assert child.data.tags["tune_rescon.state"] == state
    assert "tune_rescon.error" not in child.data.tags


def test_a_long_error_is_cut_at_its_beginning(make_writer: MakeWriter, mlflow_store: RunsOfStore) -> None:
    text = "x" * 9000 + "\nValueError: it was the last line"
    send(make_writer(), SearchRunState(id="1a"), trial(0, "failed", error=text, notes=("one", "two")))
    tags = mlflow_store.child(0).data.tags
    assert text.endswith(tags["tune_rescon.error"])
    assert len(tags["tune_rescon.error"]) == 2000
    assert "last line" in tags["tune_rescon.error"]
    assert tags["tune_rescon.notes"] == "one\ntwo"


def test_files_are_artifacts_of_the_parent_in_their_newest_version(
    make_sync: MakeSync, mlflow_store: RunsOfStore, tmp_path: Path
) -> None:
    space, best = tmp_path / "space.yaml", tmp_path / "best.yaml"
    space.write_text("version: 1\n")
    sync = make_sync()
    sync.send(SearchRunState(id="1a", files=(space,)))
    space.write_text("version: 1, and more\n")
    best.write_text("trial: 0\n")
    sync.send(SearchRunState(id="1a", state="finished", files=(space, best)))
    paths = {file.path for file in mlflow_store.client.list_artifacts(mlflow_store.parent().info.run_id)}
    assert paths == {"space.yaml", "best.yaml"}
    (artifact,) = (tmp_path / "artifacts").rglob("space.yaml")
    assert artifact.read_text() == "version: 1, and more\n"


def test_an_artifact_shows_no_password(
    make_writer: MakeWriter, mlflow_store: RunsOfStore, tmp_path: Path
) -> None:
    """Workers need the whole URL of an archive, so the folder's ``space.yaml`` has it."""
    space = tmp_path / "space.yaml"
    space.write_text("path: https://ann:s3cret@host/a.zip?X-Amz-Signature=5e1f\n")
    send(make_writer(), SearchRunState(id="1a", files=(space,)))
    downloaded = mlflow_store.client.download_artifacts(
        mlflow_store.parent().info.run_id, "space.yaml", str(tmp_path / "found")
    )
    assert Path(downloaded).read_text() == "path: https://ann:***@host/a.zip?X-Amz-Signature=***\n"
    assert "s3cret" in space.read_text()


def test_passwords_in_a_table_are_hidden_and_other_cells_kept(
    make_writer: MakeWriter, mlflow_store: RunsOfStore, tmp_path: Path
) -> None:
    """A row has no space that ends a password before an @ in a later cell."""
    table = tmp_path / "trials.csv"
    table.write_text('7,https://ann:s3cret@h/w.ckpt,net:f@v2\n8,"https://ann:s3,cret@h/w.ckpt",\'=x\n')
    send(make_writer(), SearchRunState(id="1a", files=(table,)))
    downloaded = mlflow_store.client.download_artifacts(
        mlflow_store.parent().info.run_id, table.name, str(tmp_path / "found")
    )
    assert (
        Path(downloaded).read_text()
        == "7,https://ann:***@h/w.ckpt,net:f@v2\n8,https://ann:***@h/w.ckpt,'=x\n"
    )


def test_a_file_that_has_not_changed_is_not_sent_again(
    make_sync: MakeSync, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", lambda *args: sent.append(Path(args[2]).name))
    space, best = tmp_path / "space.yaml", tmp_path / "best.yaml"
    for file in (space, best):
        file.write_text("a: 1\n")
    sync = make_sync()
    for _ in range(2):
        sync.send(SearchRunState(id="1a", files=(space, best)))
    best.write_text("a: 22\n")
    sync.send(SearchRunState(id="1a", files=(space, best)))
    assert sent == ["space.yaml", "best.yaml", "best.yaml"]


def test_the_datasets_of_a_search_are_inputs_of_its_run(
    make_sync: MakeSync, mlflow_store: RunsOfStore
) -> None:
    images = Images(name="digits", digest="0123", counts={"train": 30, "val": 15})
    for _ in range(2):
        sync = make_sync()
        for state in ("running", "finished"):
            sync.send(SearchRunState(id="1a", images=(images,), state=state))
    inputs = mlflow_store.parent().inputs
    assert inputs is not None
    (dataset_input,) = inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("digits", "0123")
    assert json.loads(dataset_input.dataset.profile or "") == {"train_images": 30, "val_images": 15}
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "training")]


def test_the_experiment_names_its_primary_metric(make_writer: MakeWriter, mlflow_store: RunsOfStore) -> None:
    send(make_writer(), SearchRunState(id="1a"))
    experiment = mlflow_store.client.get_experiment_by_name("digits")
    assert experiment is not None
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == "best_val_accuracy"
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"


def test_a_promoted_trial_runs_again_in_its_run(make_sync: MakeSync, mlflow_store: RunsOfStore) -> None:
    sync = make_sync()
    for run_state in (SearchRunState(id="1a"), trial(1, "paused"), trial(1)):
        sync.send(run_state)
    assert mlflow_store.child(0).info.status == "RUNNING"
    for run_state in (trial(2), trial(2, "stopped")):
        sync.send(run_state)
    assert mlflow_store.child(0).info.status == "FINISHED"
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY[:2]
    assert len(mlflow_store.runs()) == 2


UPDATES = (trial(0), trial(1), trial(2), trial(3), trial(3, "stopped"))


@pytest.mark.parametrize("sent_before", range(len(UPDATES) + 1))
@pytest.mark.parametrize(
    "final_update", [trial(3), trial(3, "interrupted"), trial(3, "stopped")], ids=lambda update: update.state
)
def test_updates_that_a_dead_driver_had_not_sent_are_sent_once(
    sent_before: int, final_update: TrialRunState, make_writer: MakeWriter, mlflow_store: RunsOfStore
) -> None:
    send(make_writer(), SearchRunState(id="1a"), *UPDATES[:sent_before])
    for _ in range(2):
        assert set(send(make_writer(), SearchRunState(id="1a"), final_update)) == {0}
        assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
        assert mlflow_store.child(0).data.params == PARAMS
    assert len(mlflow_store.runs()) == 2
    if final_update.state == "stopped":
        assert mlflow_store.child(0).info.status == "FINISHED"
        assert mlflow_store.series(0, "best_epoch") == [(3, 2.0)]
    assert mlflow_store.child(0).data.tags["tune_rescon.state"] == final_update.state


@pytest.mark.parametrize("state", ["paused", "interrupted"])
def test_missed_epochs_are_sent_when_the_state_is_unchanged(
    state: str, make_writer: MakeWriter, mlflow_store: RunsOfStore
) -> None:
    send(make_writer(), SearchRunState(id="1a"), trial(1, state))
    # The server was unreachable while the trial continued.
    for _ in range(2):
        send(make_writer(), SearchRunState(id="1a"), trial(3, state))
        assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
    assert mlflow_store.child(0).data.tags["tune_rescon.state"] == state


def test_a_run_with_a_final_tag_and_status_running_is_terminated(
    make_writer: MakeWriter, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = make_writer()
    with monkeypatch.context() as patch:
        # Killed between the two requests of a run's end.
        patch.setattr(mlflow.MlflowClient, "set_terminated", lambda *_, **__: None)
        send(sync, SearchRunState(id="1a"), trial(3, "finished"))
    assert mlflow_store.child(0).info.status == "RUNNING"
    send(make_writer(), SearchRunState(id="1a"), trial(3, "finished"))
    assert mlflow_store.child(0).info.status == "FINISHED"
    assert mlflow_store.series(0, "best_epoch") == [(3, 2.0)]


def test_a_resumed_search_reopens_its_runs(make_writer: MakeWriter, mlflow_store: RunsOfStore) -> None:
    opened = send(
        make_writer(),
        SearchRunState(id="1a"),
        trial(1, "interrupted"),
        SearchRunState(id="1a", state="interrupted"),
    )
    send(make_writer(), SearchRunState(id="1a"), trial(1))
    for run in (mlflow_store.parent(), mlflow_store.child(0)):
        assert run.info.status == "RUNNING"
        assert run.data.tags["tune_rescon.state"] == "running"
    finished = SearchRunState(id="1a", state="finished")
    assert send(make_writer(), SearchRunState(id="1a"), trial(3, "finished"), finished) == opened
    assert mlflow_store.child(0).info.status == mlflow_store.parent().info.status == "FINISHED"
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
    assert len(mlflow_store.runs()) == 2


def test_a_changed_parameter_keeps_its_first_value(
    make_writer: MakeWriter, mlflow_store: RunsOfStore
) -> None:
    send(make_writer(), SearchRunState(id="1a"), trial(1, params={"batch_size": "64"}))
    changed = trial(2, "finished", params={"batch_size": "32", "depth": "56"})
    send(make_writer(), SearchRunState(id="1a"), changed)
    assert mlflow_store.child(0).data.params == {"batch_size": "64", "depth": "56"}
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY[:2]


def test_a_search_stays_in_an_experiment_that_a_user_has_renamed(
    store: str, mlflow_store: RunsOfStore, tmp_path: Path
) -> None:
    writer_destination = destination(store, "s", tmp_path / "artifacts")

    def send_from_new_driver(known_run: str | None, epochs: int, state: str) -> dict[int, str]:
        writer = MlflowWriter(
            dataclasses.replace(writer_destination, known_run=known_run), open_worker=InProcessWorker
        )
        writer.start()
        return send(writer, SearchRunState(id="1a"), trial(epochs, state))

    run_id = send_from_new_driver(None, 1, "interrupted")[0]
    mlflow_store.client.rename_experiment(mlflow_store.child(0).info.experiment_id, "cats and dogs")
    for _ in range(2):
        assert send_from_new_driver(run_id, 3, "finished") == {0: run_id}
        assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY
        assert mlflow_store.client.get_experiment_by_name(writer_destination.experiment) is None
    # Another store has no such run.
    assert send_from_new_driver("0" * 32, 3, "finished") != {0: run_id}
    assert mlflow_store.client.get_experiment_by_name(writer_destination.experiment) is not None


def test_a_deleted_run_is_created_again(make_writer: MakeWriter, mlflow_store: RunsOfStore) -> None:
    opened = send(make_writer(), SearchRunState(id="1a"), trial())
    mlflow_store.client.delete_run(opened[0])
    reopened = send(make_writer(), SearchRunState(id="1a"), trial(2))
    assert reopened[0] == mlflow_store.child(0).info.run_id != opened[0]
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY[:2]


def test_a_request_without_a_response_creates_no_second_run(
    make_sync: MakeSync, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run = mlflow.MlflowClient.create_run

    def create_and_lose_response(*args: Any, **kwargs: Any) -> Run:
        create_run(*args, **kwargs)
        raise ConnectionError("the response was lost")

    sync = make_sync()
    for run_state in (SearchRunState(id="1a"), trial(2)):
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "create_run", create_and_lose_response)
            with pytest.raises(ConnectionError):
                sync.send(run_state)
        sync.send(run_state)
    assert len(mlflow_store.runs()) == 2
    assert mlflow_store.series(0, "val_accuracy") == VAL_ACCURACY[:2]


def test_the_parent_run_is_found_on_a_later_page(
    make_writer: MakeWriter, mlflow_store: RunsOfStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [trial(number=number) for number in range(4)]
    send(make_writer(), SearchRunState(id="1a", started_ms=100), *trials)
    search_runs = mlflow.MlflowClient.search_runs
    monkeypatch.setattr(
        mlflow.MlflowClient,
        "search_runs",
        lambda *args, **kwargs: search_runs(*args, **{**kwargs, "max_results": 2}),
    )
    send(make_writer(), SearchRunState(id="1a"), *trials)
    monkeypatch.undo()
    assert mlflow_store.parent().info.run_name == "s"
    assert len(mlflow_store.runs()) == 5
