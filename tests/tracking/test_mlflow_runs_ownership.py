"""Which search owns a run: decided by the search's id, not by names. On a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from tests.tracking.conftest import destination
from tune_rescon.errors import StorageError
from tune_rescon.tracking import Champion, SearchRunState, TrialRunState, registry
from tune_rescon.tracking.mlflow_runs import PLACE_TAG, MlflowRunSync
from tune_rescon.tracking.registry import ID_TAG

MakeSync = Callable[[], MlflowRunSync]

OURS, THEIRS = "aa" * 16, "bb" * 16


def search(search_id: str = OURS, place: str = "host:/runs/s", **changes: Any) -> SearchRunState:
    return SearchRunState(id=search_id, place=place, started_ms=100, **changes)


def trial(number: int, epochs: int = 1, *, started_ms: int = 500, **changes: Any) -> TrialRunState:
    return TrialRunState(
        number=number,
        params={"depth": changes.pop("depth", "56")},
        history={"val_accuracy": (0.5,) * epochs},
        times_ms=tuple(range(1, epochs + 1)),
        started_ms=started_ms,
        ended_ms=9000,
        **changes,
    )


@pytest.fixture
def client(store: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(store, store)


def runs(client: mlflow.MlflowClient, kind: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, run_view_type=kind))


def parents(client: mlflow.MlflowClient) -> list[Run]:
    return [run for run in runs(client) if "tune_rescon.trial" not in run.data.tags]


def children(client: mlflow.MlflowClient) -> dict[int, str]:
    """Return the run id of each trial; assert that there is one run per trial."""
    trial_runs = [(int(run.data.tags.get("tune_rescon.trial", -1)), run.info.run_id) for run in runs(client)]
    run_ids = {number: run_id for number, run_id in trial_runs if number >= 0}
    assert len(run_ids) == sum(number >= 0 for number, _ in trial_runs)
    return run_ids


def run_data(client: mlflow.MlflowClient, run_ids: list[str]) -> list[dict[str, Any]]:
    return [client.get_run(run_id).to_dictionary() for run_id in run_ids]


@pytest.mark.parametrize(("shown", "kept"), [("s", "renamed"), ("my best", "my best")])
def test_the_runs_follow_a_folder_that_was_renamed(
    shown: str, kept: str, make_sync: MakeSync, client: mlflow.MlflowClient, store: str, tmp_path: Path
) -> None:
    first = make_sync()
    parent = first.send(search())
    first.send(trial(0))
    client.update_run(parent, name=shown)
    second = MlflowRunSync(destination(store, "renamed", tmp_path / "artifacts"))
    second.connect()
    assert second.send(search()) == parent
    for number in range(2):
        second.send(trial(number))
    assert [run.data.tags["tune_rescon.search"] for run in runs(client)] == ["renamed"] * 3
    assert client.get_run(parent).info.run_name == kept
    assert sorted(children(client)) == [0, 1]


def test_a_search_does_not_change_runs_of_another_with_its_name(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    first = make_sync()
    first_runs = [first.send(search(note="first"))]
    first_runs += [first.send(trial(number)) for number in range(3)]
    before = run_data(client, first_runs)
    # A search of another storage while the first runs. Then the folder is deleted and the search restarted.
    second = make_sync()
    second_runs = [second.send(search(THEIRS, "other:/runs/s", note="second"))]
    second_runs += [second.send(trial(number, depth="92")) for number in range(2)]
    assert run_data(client, first_runs) == before
    third = make_sync()
    third_runs = [third.send(search("cc" * 16)), third.send(trial(0, started_ms=7000))]
    assert run_data(client, first_runs) == before
    first.send(trial(0, 2))
    first.send(search(note="first", state="finished"))
    assert len(set(first_runs + second_runs + third_runs)) == 4 + 3 + 2
    assert {run.info.run_id for run in runs(client, ViewType.ALL)} == {*first_runs, *second_runs, *third_runs}
    for parent, *child_ids in (first_runs, second_runs, third_runs):
        for run_id in child_ids:
            assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent


def test_runs_are_found_by_id_after_a_rename_and_a_move(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    sync = make_sync()
    opened = [sync.send(search()), sync.send(trial(0))]
    assert {run.data.tags["tune_rescon.id"] for run in runs(client)} == {OURS}
    moved = make_sync()
    moved._search = "renamed"
    assert [moved.send(search(place="host:/elsewhere/s")), moved.send(trial(0, 2))] == opened
    assert len(runs(client, ViewType.ALL)) == 2


def test_a_lost_trial_is_replaced_by_the_next_with_its_number(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    dead_driver = make_sync()
    for run_state in (search(), trial(0), trial(1, depth="92", started_ms=600)):
        dead_driver.send(run_state)
    sync = make_sync()
    for run_state in (search(), trial(0), trial(1, depth="56", started_ms=90_000)):
        sync.send(run_state)
    assert sorted(children(client)) == [0, 1]
    assert client.get_run(children(client)[1]).data.params == {"depth": "56"}


def test_a_copy_with_the_same_id_deletes_no_run_of_the_original(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    original = make_sync()
    original_runs = [original.send(run_state) for run_state in (search(), trial(0), trial(1, started_ms=600))]
    copy = make_sync()
    copy.send(search(place="other:/runs/s"))
    copy.send(trial(1, started_ms=90_000))
    assert {client.get_run(run_id).info.lifecycle_stage for run_id in original_runs} == {"active"}


def without_id(client: mlflow.MlflowClient, run_ids: list[str]) -> list[str]:
    """Remove the tags that earlier versions did not write."""
    for run_id in run_ids:
        for tag in {ID_TAG, PLACE_TAG} & client.get_run(run_id).data.tags.keys():
            client.delete_tag(run_id, tag)
    return run_ids


def test_the_runs_of_an_earlier_version_are_found_by_the_records_run_ids(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    other, old = make_sync(), make_sync()
    other_runs = without_id(client, [other.send(search(THEIRS)), other.send(trial(0))])
    old_runs = without_id(client, [old.send(search()), *(old.send(trial(n)) for n in range(2))])
    before = run_data(client, other_runs)
    deleted = old_runs[1]
    client.delete_run(deleted)
    for _ in range(2):
        sync = make_sync()
        parent = sync.send(search(known_runs=tuple(old_runs[1:])))
        trial_runs = [sync.send(trial(n, 2, run_id=old_runs[1 + n])) for n in range(2)]
        assert parent == old_runs[0]
        assert trial_runs[1] == old_runs[2]
        assert trial_runs[0] != deleted
        assert run_data(client, other_runs) == before
        old_runs[1] = trial_runs[0]
    assert len(runs(client)) == 2 + 3
    for run_id in old_runs:
        assert client.get_run(run_id).data.tags[ID_TAG] == OURS


def test_a_recorded_run_with_another_searchs_id_is_not_changed(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    original = make_sync()
    original_runs = [original.send(search()), original.send(trial(0))]
    before = run_data(client, original_runs)
    copy = make_sync()
    copy_runs = [copy.send(search(THEIRS, known_runs=(original_runs[1],)))]
    copy_runs.append(copy.send(trial(0, 2, run_id=original_runs[1])))
    assert not set(copy_runs) & set(original_runs)
    assert run_data(client, original_runs) == before


@pytest.mark.parametrize("run_id", ["0" * 32, "not-a-run"])
def test_a_recorded_run_that_is_not_in_this_store_is_created(run_id: str, make_sync: MakeSync) -> None:
    sync = make_sync()
    sync.send(search(known_runs=(run_id,)))
    assert sync.send(trial(0, run_id=run_id)) != run_id


def test_a_deleted_parent_is_replaced_and_adopts_the_trial_runs(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    sync = make_sync()
    old = sync.send(search())
    trial_runs = [sync.send(trial(number)) for number in range(2)]
    client.delete_run(old)
    resumed = make_sync()
    parent = resumed.send(search())
    assert parent != old
    assert [resumed.send(trial(number, 2, run_id=trial_runs[number])) for number in range(2)] == trial_runs
    assert sorted(children(client)) == [0, 1]
    for run_id in trial_runs:
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent
    assert [run.info.run_id for run in parents(client)] == [parent]


def register(sync: MlflowRunSync, search_id: str, *, epoch: int = 1) -> tuple[str, ...]:
    """Finish a search with one trial, register its model, and return the messages to the user."""
    sync.send(search(search_id))
    sync.send(trial(0, state="finished"))
    winner = Champion(number=0, epoch=epoch, checkpoint="best.ckpt")
    sync.send(search(search_id, state="finished", champion=winner))
    return sync.take_remarks()


@pytest.mark.usefixtures("without_export")
@pytest.mark.parametrize("has_tag", [True, False], ids=["tagged", "of an earlier version"])
def test_another_searchs_champion_keeps_an_alias_and_is_reported(
    has_tag: bool, make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    assert register(make_sync(), OURS) == ()
    if not has_tag:
        client.delete_model_version_tag("s", "1", ID_TAG)
    (message,) = register(make_sync(), THEIRS)
    assert "another search" in message
    assert f"champion-{OURS[:8]}" in message
    aliases = client.get_registered_model("s").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {
        "champion": 2,
        f"champion-{OURS[:8]}": 1,
    }


@pytest.mark.usefixtures("without_export")
def test_a_champion_is_not_replaced_while_its_search_cannot_be_read(
    make_sync: MakeSync, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(make_sync(), OURS)
    client.delete_model_version_tag("s", "1", ID_TAG)
    theirs = client.get_model_version("s", "1").run_id
    get_run = mlflow.MlflowClient.get_run

    def fail(self: mlflow.MlflowClient, run_id: str) -> Run:
        if run_id == theirs:
            raise MlflowException("the store is away")
        return get_run(self, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_run", fail)
        with pytest.raises(MlflowException, match="is away"):
            register(make_sync(), THEIRS)
    assert int(client.get_registered_model("s").aliases["champion"]) == 1


@pytest.mark.usefixtures("without_export")
def test_a_better_champion_of_the_same_search_replaces_its_own_silently(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    assert register(make_sync(), OURS) == register(make_sync(), OURS, epoch=2) == ()
    assert {alias: int(version) for alias, version in client.get_registered_model("s").aliases.items()} == {
        "champion": 2
    }


@pytest.mark.usefixtures("without_export")
def test_the_champion_of_a_reused_trial_number_is_registered(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    """The study was restored from a backup: a new trial 0 is the best at the same epoch as the lost one."""
    register(make_sync(), OURS)
    register(make_sync(), OURS)
    champion = client.get_model_version_by_alias("s", "champion")
    assert int(champion.version) == 1, "it is the same network"
    lost_run = children(client)[0]
    sync = make_sync()
    sync.send(search())
    run_id = sync.send(trial(0, started_ms=70_000, state="finished"))
    sync.send(search(state="finished", champion=Champion(number=0, epoch=1, checkpoint="best.ckpt")))
    champion = client.get_model_version_by_alias("s", "champion")
    assert (champion.run_id, int(champion.version)) == (run_id, 2)
    assert run_id != lost_run


@pytest.mark.usefixtures("without_export")
@pytest.mark.parametrize("run_id", [None, "0" * 32], ids=["no run", "deleted run"])
def test_a_champion_of_an_unknown_search_keeps_a_version_alias(
    run_id: str | None, make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    client.create_registered_model("s")
    client.create_model_version("s", "file:///elsewhere", run_id)
    client.set_registered_model_alias("s", "champion", "1")
    (message,) = register(make_sync(), OURS)
    assert "champion-version-1" in message
    assert int(client.get_registered_model("s").aliases["champion-version-1"]) == 1


@pytest.mark.parametrize(("difference_ms", "same"), [(0, True), (1000, True), (-1000, True), (1001, False)])
def test_a_run_is_matched_to_its_trial_by_start_time(
    difference_ms: int, same: bool, make_sync: MakeSync
) -> None:
    """Some databases store whole seconds."""
    earlier_driver = make_sync()
    earlier_driver.send(search())
    run_id = earlier_driver.send(trial(0, started_ms=5000))
    sync = make_sync()
    sync.send(search())
    assert (sync.send(trial(0, started_ms=5000 + difference_ms)) == run_id) is same


def test_a_recorded_run_is_used_despite_another_start_time(make_sync: MakeSync) -> None:
    earlier_driver = make_sync()
    earlier_driver.send(search())
    run_id = earlier_driver.send(trial(0, started_ms=5000))
    sync = make_sync()
    sync.send(search())
    assert sync.send(trial(0, started_ms=90_000, run_id=run_id)) == run_id


def test_a_run_without_id_of_another_search_name_is_not_changed(
    make_sync: MakeSync, client: mlflow.MlflowClient
) -> None:
    old = make_sync()
    old_runs = without_id(client, [old.send(search(THEIRS)), old.send(trial(0))])
    for run_id in old_runs:
        client.set_tag(run_id, "tune_rescon.search", "another")
    before = run_data(client, old_runs)
    sync = make_sync()
    new_runs = [sync.send(search(known_runs=(old_runs[1],))), sync.send(trial(0, run_id=old_runs[1]))]
    assert not set(new_runs) & set(old_runs)
    assert run_data(client, old_runs) == before


def test_the_earliest_of_several_parents_is_used(make_sync: MakeSync, client: mlflow.MlflowClient) -> None:
    first = make_sync().send(search())
    tags = client.get_run(first).data.tags
    experiment = client.get_run(first).info.experiment_id
    later = client.create_run(experiment, start_time=9000, tags=dict(tags)).info.run_id
    earlier = client.create_run(experiment, start_time=50, tags=dict(tags)).info.run_id
    assert make_sync().send(search()) == earlier != later


@pytest.mark.usefixtures("without_export")
def test_a_champion_names_its_trial_and_epoch(make_sync: MakeSync, client: mlflow.MlflowClient) -> None:
    sync = make_sync()
    sync.send(search())
    run_id = sync.send(trial(0, state="finished"))
    for epoch, value in ((1, "val_accuracy 0.5"), (2, "")):
        winner = Champion(number=0, epoch=epoch, checkpoint="best.ckpt", value=value)
        for _ in range(2):
            parent = sync.send(search(state="finished", champion=winner))
    versions = sorted(client.search_model_versions("name = 's'"), key=lambda version: int(version.version))
    assert [version.description for version in versions] == [
        "trial_0000, epoch 1: val_accuracy 0.5",
        "trial_0000, epoch 2",
    ]
    assert {(version.run_id, version.tags[ID_TAG]) for version in versions} == {(run_id, OURS)}
    assert client.get_run(parent).data.tags["tune_rescon.champion"] == "trial_0000, epoch 2"


def test_a_champion_without_a_checkpoint_is_reported_and_not_registered(
    make_sync: MakeSync, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def raise_storage_error(_checkpoint: str) -> Iterator[Path]:
        raise StorageError("best.ckpt is gone.")
        yield

    monkeypatch.setattr(registry, "exported", raise_storage_error)
    (message,) = register(make_sync(), OURS)
    assert message == "The winner's network is not registered in MLflow: best.ckpt is gone."
    assert client.search_registered_models() == []


@pytest.mark.usefixtures("without_export")
def test_a_registry_that_refuses_the_model_is_retried(
    make_sync: MakeSync, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("the registry is away")

    sync = make_sync()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_registered_model", refuse)
        with pytest.raises(MlflowException, match="is away"):
            register(sync, OURS)
    assert register(sync, OURS) == ()
    assert len(client.search_model_versions("name = 's'")) == 1


def test_a_failed_query_of_a_runs_owner_raises(make_sync: MakeSync, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MlflowException("the store is away")

    earlier_driver = make_sync()
    earlier_driver.send(search())
    run_id = earlier_driver.send(trial(0))
    sync = make_sync()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_run", fail)
        with pytest.raises(MlflowException, match="is away"):
            sync.send(search(THEIRS, known_runs=(run_id,)))


def test_an_experiment_created_by_two_searches_at_once_is_shared(
    make_sync: MakeSync, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow.MlflowClient.create_experiment

    def create_twice(self: mlflow.MlflowClient, *args: Any) -> str:
        create(self, *args)
        return str(create(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_experiment", create_twice)
        sync = make_sync()
    run = client.get_run(sync.send(search()))
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    assert run.info.experiment_id == experiment.experiment_id


def test_an_experiment_that_cannot_be_created_is_reported(
    make_sync: MakeSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("no space left")

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="no space left"):
        make_sync()
