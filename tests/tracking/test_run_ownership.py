"""Whose a run is: by the search's id, whatever the searches are called. Against a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from tune_rescon.errors import StorageError
from tune_rescon.tracking import Champion, SearchRunState, TrialRunState, champion
from tune_rescon.tracking.champion import ID_TAG
from tune_rescon.tracking.mlflow_runs import PLACE_TAG, MlflowRunSync

Books = Callable[[], MlflowRunSync]

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
    """The run of each trial; there is one."""
    numbered = [(int(run.data.tags.get("tune_rescon.trial", -1)), run.info.run_id) for run in runs(client)]
    found = {number: run_id for number, run_id in numbered if number >= 0}
    assert len(found) == sum(number >= 0 for number, _ in numbered)
    return found


def everything(client: mlflow.MlflowClient, run_ids: list[str]) -> list[dict[str, Any]]:
    return [client.get_run(run_id).to_dictionary() for run_id in run_ids]


def test_a_search_of_the_same_name_touches_nothing_of_another(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    first = make_book()
    of_first = [first.show(search(note="first"))]
    of_first += [first.show(trial(number)) for number in range(3)]
    before = everything(client, of_first)
    # While the first still runs, from another storage; then its folder is deleted and begun again.
    second = make_book()
    of_second = [second.show(search(THEIRS, "other:/runs/s", note="second"))]
    of_second += [second.show(trial(number, depth="92")) for number in range(2)]
    assert everything(client, of_first) == before
    again = make_book()
    of_third = [again.show(search("cc" * 16)), again.show(trial(0, started_ms=7000))]
    assert everything(client, of_first) == before
    first.show(trial(0, 2))
    first.show(search(note="first", state="finished"))
    assert len(set(of_first + of_second + of_third)) == 4 + 3 + 2
    assert {run.info.run_id for run in runs(client, ViewType.ALL)} == {*of_first, *of_second, *of_third}
    for parent, *below in (of_first, of_second, of_third):
        for run_id in below:
            assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent


def test_runs_carry_the_id_and_are_found_again_under_another_name_and_place(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    book = make_book()
    opened = [book.show(search()), book.show(trial(0))]
    assert {run.data.tags["tune_rescon.id"] for run in runs(client)} == {OURS}
    moved = make_book()
    moved._search = "renamed"
    assert [moved.show(search(place="host:/elsewhere/s")), moved.show(trial(0, 2))] == opened
    assert len(runs(client, ViewType.ALL)) == 2


def test_a_trial_whose_record_was_lost_is_replaced_by_the_next_of_its_number(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    dead = make_book()
    for view in (search(), trial(0), trial(1, depth="92", started_ms=600)):
        dead.show(view)
    book = make_book()
    for view in (search(), trial(0), trial(1, depth="56", started_ms=90_000)):
        book.show(view)
    assert sorted(children(client)) == [0, 1]
    assert client.get_run(children(client)[1]).data.params == {"depth": "56"}


def test_a_copy_that_has_the_id_still_deletes_nothing_of_the_original(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    original = make_book()
    of_original = [original.show(view) for view in (search(), trial(0), trial(1, started_ms=600))]
    copy = make_book()
    copy.show(search(place="other:/runs/s"))
    copy.show(trial(1, started_ms=90_000))
    assert {client.get_run(run_id).info.lifecycle_stage for run_id in of_original} == {"active"}


def without_id(client: mlflow.MlflowClient, run_ids: list[str]) -> list[str]:
    """As a version without identities has left them."""
    for run_id in run_ids:
        for tag in {ID_TAG, PLACE_TAG} & client.get_run(run_id).data.tags.keys():
            client.delete_tag(run_id, tag)
    return run_ids


def test_the_runs_of_an_earlier_version_are_found_by_the_records_run_ids(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    other, old = make_book(), make_book()
    of_other = without_id(client, [other.show(search(THEIRS)), other.show(trial(0))])
    of_old = without_id(client, [old.show(search()), *(old.show(trial(n)) for n in range(2))])
    before = everything(client, of_other)
    deleted = of_old[1]
    client.delete_run(deleted)
    for _ in range(2):
        book = make_book()
        parent = book.show(search(known_runs=tuple(of_old[1:])))
        shown = [book.show(trial(n, 2, run_id=of_old[1 + n])) for n in range(2)]
        assert parent == of_old[0]
        assert shown[1] == of_old[2]
        assert shown[0] != deleted
        assert everything(client, of_other) == before
        of_old[1] = shown[0]
    assert len(runs(client)) == 2 + 3
    for run_id in of_old:
        assert client.get_run(run_id).data.tags[ID_TAG] == OURS


def test_a_recorded_run_that_became_another_searchs_is_left_to_it(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    original = make_book()
    of_original = [original.show(search()), original.show(trial(0))]
    before = everything(client, of_original)
    copy = make_book()
    shown = [copy.show(search(THEIRS, known_runs=(of_original[1],)))]
    shown.append(copy.show(trial(0, 2, run_id=of_original[1])))
    assert not set(shown) & set(of_original)
    assert everything(client, of_original) == before


@pytest.mark.parametrize("run_id", ["0" * 32, "not-a-run"])
def test_a_recorded_run_that_is_not_in_this_store_is_made(run_id: str, make_book: Books) -> None:
    book = make_book()
    book.show(search(known_runs=(run_id,)))
    assert book.show(trial(0, run_id=run_id)) != run_id


def test_a_parent_deleted_in_the_ui_leaves_one_run_a_trial(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    book = make_book()
    old = book.show(search())
    shown = [book.show(trial(number)) for number in range(2)]
    client.delete_run(old)
    again = make_book()
    parent = again.show(search())
    assert parent != old
    assert [again.show(trial(number, 2, run_id=shown[number])) for number in range(2)] == shown
    assert sorted(children(client)) == [0, 1]
    for run_id in shown:
        assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent
    assert [run.info.run_id for run in parents(client)] == [parent]


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered is not looked at here: see test_registry.py."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")

    @contextmanager
    def exported(_checkpoint: str) -> Iterator[Path]:
        yield folder

    monkeypatch.setattr(champion, "load_exporter", lambda: exported)


def register(book: MlflowRunSync, search_id: str, *, epoch: int = 1) -> tuple[str, ...]:
    """Finish a search whose only trial wins; what the user is told."""
    book.show(search(search_id))
    book.show(trial(0, state="finished"))
    winner = Champion(number=0, epoch=epoch, checkpoint="best.ckpt")
    book.show(search(search_id, state="finished", champion=winner))
    return book.take_remarks()


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize("has_tag", [True, False], ids=["tagged", "of an earlier version"])
def test_the_champion_of_another_search_keeps_an_alias_and_the_user_is_told(
    has_tag: bool, make_book: Books, client: mlflow.MlflowClient
) -> None:
    assert register(make_book(), OURS) == ()
    if not has_tag:
        client.delete_model_version_tag("s", "1", ID_TAG)
    (remark,) = register(make_book(), THEIRS)
    assert "another search" in remark
    assert f"champion-{OURS[:8]}" in remark
    aliases = client.get_registered_model("s").aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {
        "champion": 2,
        f"champion-{OURS[:8]}": 1,
    }


@pytest.mark.usefixtures("exports")
def test_a_champion_whose_search_the_store_cannot_tell_now_is_not_displaced(
    make_book: Books, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(make_book(), OURS)
    client.delete_model_version_tag("s", "1", ID_TAG)
    theirs = client.get_model_version("s", "1").run_id
    get_run = mlflow.MlflowClient.get_run

    def away(self: mlflow.MlflowClient, run_id: str) -> Run:
        if run_id == theirs:
            raise MlflowException("the store is away")
        return get_run(self, run_id)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_run", away)
        with pytest.raises(MlflowException, match="is away"):
            register(make_book(), THEIRS)
    assert int(client.get_registered_model("s").aliases["champion"]) == 1


@pytest.mark.usefixtures("exports")
def test_a_better_champion_of_the_same_search_replaces_its_own_silently(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    assert register(make_book(), OURS) == register(make_book(), OURS, epoch=2) == ()
    assert {alias: int(v) for alias, v in client.get_registered_model("s").aliases.items()} == {"champion": 2}


@pytest.mark.usefixtures("exports")
@pytest.mark.parametrize("run_id", [None, "0" * 32], ids=["no run", "a run that is gone"])
def test_a_champion_of_an_unknown_search_is_kept_by_its_version(
    run_id: str | None, make_book: Books, client: mlflow.MlflowClient
) -> None:
    client.create_registered_model("s")
    client.create_model_version("s", "file:///elsewhere", run_id)
    client.set_registered_model_alias("s", "champion", "1")
    (remark,) = register(make_book(), OURS)
    assert "champion-version-1" in remark
    assert int(client.get_registered_model("s").aliases["champion-version-1"]) == 1


@pytest.mark.parametrize(("apart_ms", "same"), [(0, True), (1000, True), (-1000, True), (1001, False)])
def test_a_run_shows_the_trial_that_began_when_it_did(apart_ms: int, same: bool, make_book: Books) -> None:
    """Some databases keep whole seconds."""
    dead = make_book()
    dead.show(search())
    shown = dead.show(trial(0, started_ms=5000))
    book = make_book()
    book.show(search())
    assert (book.show(trial(0, started_ms=5000 + apart_ms)) == shown) is same


def test_the_run_that_the_record_names_is_the_trials_whenever_it_began(make_book: Books) -> None:
    dead = make_book()
    dead.show(search())
    shown = dead.show(trial(0, started_ms=5000))
    book = make_book()
    book.show(search())
    assert book.show(trial(0, started_ms=90_000, run_id=shown)) == shown


def test_a_run_without_an_id_that_a_search_of_another_name_made_is_left_to_it(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    old = make_book()
    of_old = without_id(client, [old.show(search(THEIRS)), old.show(trial(0))])
    for run_id in of_old:
        client.set_tag(run_id, "tune_rescon.search", "another")
    before = everything(client, of_old)
    book = make_book()
    shown = [book.show(search(known_runs=(of_old[1],))), book.show(trial(0, run_id=of_old[1]))]
    assert not set(shown) & set(of_old)
    assert everything(client, of_old) == before


def test_of_several_parents_the_first_is_the_searchs(make_book: Books, client: mlflow.MlflowClient) -> None:
    first = make_book().show(search())
    tags = client.get_run(first).data.tags
    experiment = client.get_run(first).info.experiment_id
    later = client.create_run(experiment, start_time=9000, tags=dict(tags)).info.run_id
    earlier = client.create_run(experiment, start_time=50, tags=dict(tags)).info.run_id
    assert make_book().show(search()) == earlier != later


@pytest.mark.usefixtures("exports")
def test_a_champion_says_which_trial_and_epoch_it_is_of(
    make_book: Books, client: mlflow.MlflowClient
) -> None:
    book = make_book()
    book.show(search())
    run_id = book.show(trial(0, state="finished"))
    for epoch, value in ((1, "val_accuracy 0.5"), (2, "")):
        winner = Champion(number=0, epoch=epoch, checkpoint="best.ckpt", value=value)
        for _ in range(2):
            parent = book.show(search(state="finished", champion=winner))
    versions = sorted(client.search_model_versions("name = 's'"), key=lambda version: int(version.version))
    assert [version.description for version in versions] == [
        "trial_0000, epoch 1: val_accuracy 0.5",
        "trial_0000, epoch 2",
    ]
    assert {(version.run_id, version.tags[ID_TAG]) for version in versions} == {(run_id, OURS)}
    assert client.get_run(parent).data.tags["tune_rescon.champion"] == "trial_0000, epoch 2"


def test_a_champion_whose_checkpoint_is_gone_is_said_and_not_registered(
    make_book: Books, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def gone(_checkpoint: str) -> Iterator[Path]:
        raise StorageError("best.ckpt is gone.")
        yield

    monkeypatch.setattr(champion, "load_exporter", lambda: gone)
    (remark,) = register(make_book(), OURS)
    assert remark == "The winner's network is not registered in MLflow: best.ckpt is gone."
    assert client.search_registered_models() == []


@pytest.mark.usefixtures("exports")
def test_a_registry_that_refuses_the_model_is_tried_again(
    make_book: Books, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("the registry is away")

    book = make_book()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_registered_model", refuse)
        with pytest.raises(MlflowException, match="is away"):
            register(book, OURS)
    assert register(book, OURS) == ()
    assert len(client.search_model_versions("name = 's'")) == 1


def test_a_store_that_cannot_say_whose_a_run_is_is_asked_again(
    make_book: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise MlflowException("the store is away")

    dead = make_book()
    dead.show(search())
    shown = dead.show(trial(0))
    book = make_book()
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "get_run", away)
        with pytest.raises(MlflowException, match="is away"):
            book.show(search(THEIRS, known_runs=(shown,)))


def test_an_experiment_that_another_search_makes_at_the_same_moment_is_shared(
    make_book: Books, client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow.MlflowClient.create_experiment

    def beaten(self: mlflow.MlflowClient, *args: Any) -> str:
        create(self, *args)
        return str(create(self, *args))

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_experiment", beaten)
        book = make_book()
    run = client.get_run(book.show(search()))
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    assert run.info.experiment_id == experiment.experiment_id


def test_an_experiment_that_cannot_be_made_is_said(make_book: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("no space left")

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="no space left"):
        make_book()
