"""The durable record on a real SQLite file: a later process reads what an earlier one wrote."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState as OptunaState

from tune_rescon.config import TrialState
from tune_rescon.errors import LeaseError, StorageError
from tune_rescon.tuning import Decision, StudyRecord, Verdict
from tune_rescon.tuning.trial import Proposal

FINAL = [state for state in TrialState if state.is_final]
CONTINUE = Verdict(decision=Decision.CONTINUE)


def proposal(**sampler_state: Any) -> Proposal:
    distributions: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(1e-3, 1.0, log=True),
        # A list as text, because Optuna takes no lists as choices.
        "step_fractions": CategoricalDistribution(["[40, 60]", "[50]"]),
    }
    params = {"learning_rate": 0.1, "step_fractions": "[50]"}
    return Proposal(params=params, distributions=distributions, sampler_state=sampler_state)


def create(url: str, name: str = "s", *, maximize: bool = True) -> StudyRecord:
    return StudyRecord.create(url, name, metric="val_accuracy", maximize=maximize, space="version: 1\n")


def load(url: str, name: str = "s") -> StudyRecord:
    return StudyRecord.load(url, name, metric="val_accuracy")


def study(url: str) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=url)


def metrics(value: float) -> dict[str, float]:
    return {"val_accuracy": value, "train_loss": 1 - value, "epoch_seconds": 0.5}


@pytest.fixture(scope="module")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("record") / "study.db"
    create(f"sqlite:///{path}", "other")
    return path.read_bytes()


@pytest.fixture
def url(empty_study: bytes, tmp_path: Path) -> str:
    """A database with another search's study in it."""
    path = tmp_path / "study.db"
    path.write_bytes(empty_study)
    return f"sqlite:///{path}"


def test_a_taken_name_is_refused(url: str) -> None:
    load(url, "other").open(proposal())
    with pytest.raises(StorageError, match="a study named 'other' is already in the database") as caught:
        create(url, "other")
    assert "--resume other" in str(caught.value)


def test_a_study_that_never_had_a_trial_is_taken_over(url: str) -> None:
    assert create(url, "other").trials() == ()
    with pytest.raises(StorageError, match="already in the database"):
        create(url, "other", maximize=False)


def test_a_study_that_is_taken_over_loses_its_old_attributes(url: str) -> None:
    before = load(url, "other")
    kept = {"lease", "lease_beat", "id", "place"}
    for key in (*kept, "space:2", "slots", "warm_start", "images", "latency_ms:cpu:1a"):
        before.set_attribute(key, "theirs")
    attributes = create(url, "other").attributes()
    assert attributes == {**dict.fromkeys(kept, "theirs"), **create(url, "new").attributes()}


def test_a_study_that_another_program_has_made_keeps_its_attributes(url: str) -> None:
    study = optuna.create_study(storage=url, study_name="made", direction="maximize")
    study.set_user_attr("ticket", 7)
    assert create(url, "made").attribute("ticket") == 7


@pytest.mark.parametrize("other_driver", ["runs", "has run"])
def test_a_study_of_another_driver_is_not_changed(other_driver: str, url: str) -> None:
    """The other driver, of a search in another storage, has not recorded a trial yet."""
    other_record = load(url, "other")

    def claim() -> None:
        if other_driver == "runs":
            raise LeaseError("another driver has it")
        other_record.open(proposal())

    with pytest.raises((LeaseError, StorageError)):
        StudyRecord.create(
            url, "other", metric="val_accuracy", maximize=True, space="ours", at="last", claim=claim
        )
    assert (other_record.attribute("space"), other_record.attribute("metric_at")) == ("version: 1\n", "best")


def test_a_missing_study_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match="there is no study named 's' in the database"):
        load(url)


def test_any_name_loads_the_only_study_and_refuses_several(url: str) -> None:
    load(url, "other").open(proposal())
    assert len(StudyRecord.load(url, "s", metric="val_accuracy", any_name=True)) == 1
    create(url, "another")
    with pytest.raises(StorageError, match="no study named 's'") as caught:
        StudyRecord.load(url, "s", metric="val_accuracy", any_name=True)
    for name in ("other", "another"):
        assert repr(name) in str(caught.value)
    assert len(StudyRecord.load(url, "other", metric="val_accuracy", any_name=True)) == 1


def test_a_missing_database_is_refused_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with pytest.raises(StorageError, match=r"study\.db, which does not exist"):
        load(f"sqlite:///{path}")
    assert not path.exists()


def test_a_database_without_studies_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"study\.db \(no study is in it\)\. Restore the file"):
        load(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_search_whose_folder_was_renamed_is_resumed_under_its_own_name_only(tmp_path: Path) -> None:
    path = tmp_path / "renamed" / "study.db"
    path.parent.mkdir()
    create(f"sqlite:///{path}")
    with pytest.raises(StorageError, match="Rename the folder to s, then give --resume s"):
        load(f"sqlite:///{path}", "renamed")
    with pytest.raises(StorageError, match=r"no study named 't' .* It holds: 's'\."):
        load(f"sqlite:///{path}", "t")
    # A database with several studies, and a database of another program.
    create(f"sqlite:///{path}", "another")
    with pytest.raises(StorageError, match=r"no study named 'renamed' .* It holds: "):
        load(f"sqlite:///{path}", "renamed")
    elsewhere = path.with_name("all.db")
    create(f"sqlite:///{elsewhere}")
    with pytest.raises(StorageError, match=r"no study named 'renamed' .* It holds: 's'\."):
        load(f"sqlite:///{elsewhere}", "renamed")


@pytest.mark.parametrize(
    "url", ["nonsense", "nosuchdatabase://me:secret@host/x", "sqlite:////nowhere/at/all/study.db"]
)
def test_an_unusable_database_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StorageError, match="--study: must be the URL of a database that can be") as caught:
        create(url)
    assert "secret" not in str(caught.value)


def test_passwords_in_errors_and_notes_are_not_recorded(tmp_path: Path) -> None:
    record = create(f"sqlite:///{tmp_path / 'study.db'}")
    record.open(Proposal(params={}, distributions={}))
    record.note(0, "no answer from http://ann:s3cret@host")
    trial = record.close(0, TrialState.FAILED, checkpoint=None, error="from s3://key:s3cret@bucket/x")
    assert (trial.notes, trial.error) == (
        ("no answer from http://ann:***@host",),
        "from s3://key:***@bucket/x",
    )
    assert b"s3cret" not in (tmp_path / "study.db").read_bytes()


@pytest.mark.parametrize("against", [None, "gmacs"])
def test_other_programs_see_the_objectives_by_name(against: str | None, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    StudyRecord.create(url, "s", metric="val_accuracy", maximize=True, space="", against=against)
    assert study(url).metric_names == ["val_accuracy", *([against] if against else [])]


@pytest.mark.parametrize("maximize", [True, False])
def test_the_direction_and_the_space_are_kept(url: str, maximize: bool) -> None:
    create(url, maximize=maximize)
    assert load(url).maximize is maximize
    assert study(url).user_attrs["space"] == "version: 1\n"


@pytest.mark.parametrize("state", FINAL)
def test_a_record_reads_back_what_was_written(state: TrialState, url: str) -> None:
    record = create(url)
    number = record.open(proposal(**{"cma:generation": 3})).number
    for epoch, value in enumerate((0.5, 0.75, 0.625), 1):
        record.report(number, epoch, metrics(value), CONTINUE)
    record.note(number, "a note")
    record.close(number, state, checkpoint="best.ckpt", error="a line\nanother", cost=0.5)
    (read,) = load(url).trials()
    assert read == record.trial(number)
    assert read.state is state
    assert read.values == (0.5, 0.75, 0.625)
    assert read.history["train_loss"] == (0.5, 0.25, 0.375)
    assert read.seconds == 1.5
    assert read.sampler_state == {"cma:generation": 3}
    assert read.parameters == {"learning_rate": 0.1, "step_fractions": "[50]"}
    assert (read.notes, read.cost, read.decision) == (("a note",), 0.5, Decision.CONTINUE)


def test_a_metric_missing_in_some_epochs_is_nan_there(url: str) -> None:
    # A trial that starts on a CPU, continues on a GPU, and ends on a CPU.
    record = create(url)
    number = record.open(proposal()).number
    for epoch, memory in enumerate(({}, {"peak_memory_mb": 80.0}, {}), 1):
        record.report(number, epoch, metrics(0.5) | memory, CONTINUE)
    for trial in (record.trial(number), load(url).trial(number)):
        assert [*map(math.isfinite, trial.history["peak_memory_mb"])] == [False, True, False]
        assert trial.history["peak_memory_mb"][1] == 80.0
        assert len(trial.history["train_loss"]) == 3


def test_the_device_of_each_epoch_reads_back(url: str) -> None:
    record = create(url)
    number = record.open(proposal()).number
    for epoch, (device, count) in enumerate((("L4", 1), (None, None), ("H100", 0.5)), 1):
        record.report(number, epoch, metrics(0.5), CONTINUE, device=device, device_count=count)
    for trial in (record.trial(number), load(url).trial(number)):
        assert trial.devices == ("L4", None, "H100")
        assert trial.device_counts == (1, None, 0.5)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TrialState.FINISHED, OptunaState.COMPLETE),
        (TrialState.STOPPED, OptunaState.PRUNED),
        (TrialState.DIVERGED, OptunaState.FAIL),
        (TrialState.OUT_OF_MEMORY, OptunaState.FAIL),
        (TrialState.FAILED, OptunaState.FAIL),
    ],
)
def test_each_state_has_optunas_own_state(state: TrialState, expected: OptunaState, url: str) -> None:
    record = create(url)
    number = record.open(proposal()).number
    record.report(number, 1, metrics(0.5), CONTINUE)
    record.close(number, state, checkpoint=None)
    (trial,) = study(url).trials
    assert trial.state is expected
    assert trial.value == (0.5 if expected in (OptunaState.COMPLETE, OptunaState.PRUNED) else None)
    assert trial.user_attrs["state"] == state.value


def test_non_finite_values_read_back(url: str) -> None:
    record = create(url)
    number = record.open(proposal()).number
    for epoch, value in enumerate((0.5, math.inf, math.nan), 1):
        record.report(number, epoch, metrics(value), CONTINUE)
    record.close(number, TrialState.DIVERGED, checkpoint=None)
    (read,) = load(url).trials()
    assert read.values[:2] == (0.5, math.inf)
    assert math.isnan(read.values[2])
    assert math.isnan(read.history["train_loss"][2])
    assert (read.best_epoch, read.best_value) == (1, 0.5)


def test_the_run_id_is_kept_whether_it_comes_in_time_or_late(url: str) -> None:
    record = create(url)
    numbers = [record.open(proposal()).number for _ in range(2)]
    record.set_run_id(0, "in time")
    for number in numbers:
        record.close(number, TrialState.FAILED, checkpoint=None)
    record.set_run_id(1, "late")
    assert [trial.mlflow_run_id for trial in load(url).trials()] == ["in time", "late"]
    assert load(url).trials() == record.trials()


@pytest.mark.parametrize("aside", ["pause", "interrupt"])
def test_a_paused_trial_continues_under_its_number(aside: str, url: str) -> None:
    record = create(url)
    opened_first = record.open(proposal())
    record.report(0, 1, metrics(0.5), Verdict(decision=Decision.PAUSE), checkpoint="best.ckpt")
    waiting = getattr(record, aside)(0)
    assert not waiting.state.is_final
    assert study(url).trials[0].state is OptunaState.RUNNING
    later = load(url)
    assert later.trials() == record.trials()
    opened = later.reopen(0)
    where = "checkpoints/trial_0000/best.ckpt"
    assert (opened.parameters, opened.values, opened.checkpoint) == (opened_first.parameters, (0.5,), where)
    later.report(0, 2, metrics(0.75), CONTINUE)
    later.close(0, TrialState.STOPPED, checkpoint="best.ckpt")
    assert load(url).trials() == later.trials()
    assert later.trial(0).values == (0.5, 0.75)


def test_the_checkpoint_of_an_interrupted_trial_is_a_user_attribute(url: str) -> None:
    record = create(url)
    record.open(proposal())
    record.report(0, 1, metrics(0.5), CONTINUE, checkpoint="last.ckpt")
    record.interrupt(0)
    attributes = study(url).trials[0].user_attrs
    assert (attributes["state"], attributes["checkpoint"]) == (
        "interrupted",
        "checkpoints/trial_0000/last.ckpt",
    )


@pytest.mark.parametrize("pauses", [False, True])
def test_a_trial_interrupted_before_its_first_epoch_has_the_checkpoint_of_a_later_one(
    pauses: bool, url: str
) -> None:
    """Its driver was killed, or it waits for its promotion: nothing has closed the trial."""
    record = create(url)
    record.open(proposal())
    record.interrupt(0)
    record.reopen(0)
    record.report(0, 1, metrics(0.5), CONTINUE, checkpoint="best.ckpt")
    if pauses:
        record.pause(0)
        assert study(url).trials[0].user_attrs["checkpoint"] == "checkpoints/trial_0000/best.ckpt"
    assert load(url).trial(0).checkpoint == "checkpoints/trial_0000/best.ckpt"


def test_a_deleted_checkpoint_of_a_closed_trial_is_forgotten(url: str) -> None:
    record = create(url)
    record.open(proposal())
    record.close(0, TrialState.STOPPED, checkpoint="best.ckpt")
    record.forget_checkpoint(0)
    assert load(url).trial(0).checkpoint is None
    assert study(url).trials[0].user_attrs["checkpoint"] is None


def test_study_attributes_read_back_and_can_be_replaced(url: str) -> None:
    record = create(url)
    assert record.attribute("warm_start") is None
    for value in ([1], [1, 2]):
        record.set_attribute("warm_start", value)
        assert load(url).attribute("warm_start") == value


class DriverDiedError(Exception):
    pass


@contextmanager
def dies_after_insert(table: str) -> Iterator[None]:
    """The driver dies in the block after its first INSERT into the table."""

    def die(connection: object, cursor: object, statement: str, *_: object) -> None:
        del connection, cursor
        if statement.startswith(f"INSERT INTO {table} "):
            raise DriverDiedError

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", die)
    try:
        with pytest.raises(DriverDiedError):
            yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", die)


@pytest.mark.parametrize("table", ["trials", "trial_params", "trial_user_attributes"])
def test_a_driver_that_dies_while_it_opens_a_trial_leaves_none(table: str, url: str) -> None:
    record = create(url)
    with dies_after_insert(table):
        record.open(proposal())
    assert load(url).trials() == ()
    assert load(url).open(proposal()).number == 0


@pytest.mark.parametrize("table", ["trial_intermediate_values", "trial_system_attributes"])
def test_a_driver_that_dies_while_it_records_an_epoch_leaves_the_epoch_out(table: str, url: str) -> None:
    record = create(url)
    record.open(proposal())
    record.report(0, 1, metrics(0.5), CONTINUE)
    with dies_after_insert(table):
        record.report(0, 2, metrics(0.75), CONTINUE)
    later = load(url)
    assert {len(series) for series in later.trial(0).history.values()} == {later.trial(0).epochs} == {1}
    later.report(0, 2, metrics(0.75), CONTINUE)
    assert later.trial(0).history["val_accuracy"] == later.trial(0).values == (0.5, 0.75)
    assert load(url).trials() == later.trials()


def test_two_objectives_are_two_values_in_optuna(url: str) -> None:
    record = StudyRecord.create(
        url, "s", metric="val_accuracy", maximize=True, space="version: 1\n", against="gmacs"
    )
    record.open(proposal())
    record.report(0, 1, metrics(0.5), CONTINUE)
    record.close(0, TrialState.FINISHED, checkpoint=None, cost=0.25)
    (best,) = study(url).best_trials
    assert best.values == [0.5, 0.25]
    assert load(url).maximize
    assert load(url).trials() == record.trials()


def test_an_epoch_is_one_transaction(url: str) -> None:
    """Optuna's storage uses one transaction per value and attribute, each of which takes milliseconds."""
    commits: list[object] = []

    def count(connection: object) -> None:
        commits.append(connection)

    record = create(url)
    record.open(proposal())
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", count)
    try:
        record.report(0, 1, metrics(0.5), CONTINUE)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", count)
    assert len(commits) == 1


def test_an_epoch_out_of_order_is_refused(url: str) -> None:
    record = create(url)
    record.open(proposal())
    for epoch in (0, 2):
        with pytest.raises(AssertionError, match="after 0"):
            record.report(0, epoch, metrics(0.5), CONTINUE)
    assert load(url).trial(0).epochs == 0


@pytest.mark.parametrize(
    ("decision", "recorded_word"),
    [
        (Decision.CONTINUE, "continue"),
        (Decision.STOP, "stop"),
        (Decision.PAUSE, "pause"),
        (Decision.FINISH, "finish"),
        (Decision.DIVERGED, "diverged"),
    ],
)
def test_decisions_are_recorded_with_the_words_of_earlier_versions(
    decision: Decision, recorded_word: str, url: str
) -> None:
    record = create(url)
    record.open(proposal())
    record.report(0, 1, metrics(0.5), Verdict(decision=decision))
    assert load(url).trial(0).decision is decision
    details = study(url).trials[0].system_attrs["tune_rescon:epoch:1"]
    assert details["decision"] == recorded_word
    assert details["metrics"] == metrics(0.5)


def test_the_time_of_each_epoch_reads_back(url: str) -> None:
    start = time.time() * 1000
    record = create(url)
    record.open(proposal())
    for epoch in (1, 2):
        record.report(0, epoch, metrics(0.5), CONTINUE)
    first, second = load(url).trial(0).times_ms
    assert start - 1 <= first <= second <= time.time() * 1000


@pytest.mark.parametrize("state", [TrialState.FINISHED, TrialState.STOPPED])
def test_a_trial_without_a_finite_value_has_none_in_optuna(state: TrialState, url: str) -> None:
    record = create(url)
    record.open(proposal())
    record.close(0, state, checkpoint=None)
    assert study(url).trials[0].values is None
    assert load(url).trials() == record.trials()
