"""A cluster that ends itself: when it is due, what keeps it, and in which order it ends."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.clusters.conftest import CLUSTER_YAML, served_once
from tests.conftest import S3Server
from tune_rescon.cluster import main
from tune_rescon.clusters import this_head
from tune_rescon.clusters.commands import Done
from tune_rescon.clusters.head import HeadState, parse_running, running_jobs
from tune_rescon.clusters.idle import Head, IdleFiles, IdleRule, IdleState, Look, watch
from tune_rescon.clusters.this_head import beat_age, look_at_head
from tune_rescon.errors import ClusterError
from tune_rescon.storage import RemoteError, RemoteFolder, SharedValue, StorageUrl
from tune_rescon.tuning.lease import hold_lease

HOUR = 3600.0
AT_REST = Look()
BUSY = Look(uses=("job a-1",))


def rule_after(*looks: tuple[float, Look]) -> IdleRule:
    rule = IdleRule(0.0)
    for now, look in looks:
        rule.observe(look, now)
    return rule


def connected(*names: str) -> Look:
    return Look(sessions=frozenset(names))


def test_a_cluster_is_due_after_the_given_idle_hours() -> None:
    rule = rule_after((HOUR, BUSY), (1.1 * HOUR, AT_REST))
    assert not rule.is_due(4, 4.9 * HOUR)
    assert rule.is_due(4, 5 * HOUR)
    assert (rule.used, rule.by) == (HOUR, "job a-1")


def test_its_start_counts_as_use() -> None:
    rule = rule_after((0.5 * HOUR, AT_REST))
    assert not rule.is_due(4, 3.99 * HOUR)
    assert rule.is_due(4, 4 * HOUR)


def test_a_cluster_in_use_is_never_due() -> None:
    rule = rule_after((HOUR, BUSY))
    assert not rule.is_due(4, 1000 * HOUR), "a look that is late, as on a machine that was suspended"


def test_a_long_connection_is_use_and_a_short_one_only_delays_the_end() -> None:
    tunnel = rule_after((5 * HOUR, connected("a")), (5.1 * HOUR, connected("a", "b")), (6 * HOUR, AT_REST))
    assert (tunnel.used, tunnel.by) == (5.1 * HOUR, "an ssh connection")
    # `cluster status` every few minutes, each over a connection of its own.
    short = rule_after((5 * HOUR, connected("a")), (5.1 * HOUR, connected("b")))
    assert short.used == 0.0
    assert not short.is_due(4, 5.1 * HOUR), "a job may be about to be submitted"
    short.observe(AT_REST, 5.2 * HOUR)
    assert short.is_due(4, 5.2 * HOUR)


def test_database_writes_and_heartbeats_count_from_their_own_time() -> None:
    rule = rule_after((5 * HOUR, Look(unwritten=2 * HOUR)))
    assert (rule.used, rule.by) == (3 * HOUR, "a change of MLflow's database")
    rule.record_use(4 * HOUR, "a search's heartbeat", 5 * HOUR)
    assert rule.used == 3 * HOUR, "an older use"
    rule.record_use(-60.0, "a search's heartbeat", 5 * HOUR)
    assert (rule.used, rule.by) == (5 * HOUR, "a search's heartbeat"), "no clock is ahead of this one"


@dataclass
class Day:
    """A head whose looks, heartbeats and troubles are given, by hours of a clock that runs at once."""

    looks: Callable[[float], Look] = lambda _: AT_REST
    beat: Callable[[float], float] = lambda _: math.inf
    not_kept_until: float = 0.0
    refused_until: float = 0.0
    now: float = 0.0
    did: list[str] = field(default_factory=list)

    def head(self) -> Head:
        return Head(
            look=lambda: self.looks(self.now / HOUR),
            beat_age=lambda: self.beat(self.now / HOUR) * HOUR,
            end_mlflow=self.end_mlflow,
            start_mlflow=lambda: self.did.append("start MLflow"),
            stop_ray=lambda: self.did.append("stop Ray"),
            end_machines=self.end_machines,
        )

    def end_mlflow(self) -> None:
        self.did.append("end MLflow")
        if self.now < self.not_kept_until * HOUR:
            raise ClusterError("its last changes are not kept")

    def end_machines(self) -> None:
        if self.now < self.refused_until * HOUR:
            self.did.append("refused")
            raise ClusterError("throttled")
        self.did.append(f"end machines at {self.now / HOUR:.1f}")

    def wait(self, seconds: float) -> None:
        assert self.now < 100 * HOUR, self.did
        self.now += seconds

    def watch(self, files: IdleFiles) -> list[str]:
        watch(files, self.head(), interval=0.1 * HOUR, clock=lambda: self.now, wait=self.wait)
        return self.did


@pytest.fixture
def files(tmp_path: Path) -> IdleFiles:
    found = IdleFiles(setting=tmp_path / "token" / "hours", folder=tmp_path / "idle")
    found.write_hours(4)
    return found


ENDED = ["end MLflow", "stop Ray"]


def test_mlflow_is_copied_then_ray_ends_then_the_machines(files: IdleFiles) -> None:
    assert Day().watch(files) == [*ENDED, "end machines at 4.0"]


def test_a_cluster_with_a_job_never_ends(files: IdleFiles) -> None:
    day = Day(looks=lambda hour: BUSY if hour < 20 else AT_REST)
    (*_, last) = day.watch(files)
    assert last == "end machines at 23.9"


def test_a_job_submitted_while_mlflow_is_copied_keeps_the_cluster(files: IdleFiles) -> None:
    looks = iter([AT_REST] * 41 + [connected("submit")] + [BUSY] * 20)
    day = Day(looks=lambda _: next(looks, AT_REST))
    done = day.watch(files)
    assert done[:3] == ["end MLflow", "start MLflow", "end MLflow"]
    assert done[-1] == "end machines at 10.0"


def test_a_search_with_heartbeats_keeps_the_cluster(files: IdleFiles) -> None:
    day = Day(beat=lambda hour: 0.01 if hour < 6 else hour - 6)
    assert day.watch(files) == [*ENDED, "end machines at 10.0"]


def test_an_unreadable_storage_keeps_the_cluster_and_is_reported(files: IdleFiles) -> None:
    said = []

    def beat(hour: float) -> float:
        if hour < 7:
            if (state := files.read_state()) and state.problem:
                said.append(state.describe())
            raise RemoteError("503 Slow Down")
        return math.inf

    assert Day(beat=beat).watch(files) == [*ENDED, "end machines at 7.0"]
    assert said[0].endswith("It could not be ended: 503 Slow Down")


def test_a_failed_database_copy_keeps_the_cluster(files: IdleFiles) -> None:
    done = Day(not_kept_until=4.25).watch(files)
    assert done == ["end MLflow", "start MLflow"] * 3 + [*ENDED, "end machines at 4.3"]


def test_an_mlflow_server_that_ended_by_itself_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    commands, started = iter([["first"], []]), []
    monkeypatch.setattr(this_head, "mlflow_command", lambda _: next(commands))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    head = this_head.head_actions()
    head.end_mlflow()
    head.end_mlflow()
    head.start_mlflow()
    assert started == [["first"]]


def test_a_refused_termination_is_retried(files: IdleFiles) -> None:
    done = Day(refused_until=4.0 + 25 / 3600).watch(files)
    assert done == [*ENDED, "refused", "refused", "refused", "end machines at 4.0"]


def test_changed_hours_are_noticed_and_zero_hours_end_the_watch(files: IdleFiles) -> None:
    def looks(hour: float) -> Look:
        if 3 < hour < 3.2:
            files.write_hours(9)
        if hour > 6:
            files.write_hours(0)
        return AT_REST

    assert Day(looks=looks).watch(files) == []
    assert files.read_state() is None


def test_another_up_counts_as_use(files: IdleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that starts the head again, whose process finds that another one watches."""
    monkeypatch.setattr("tune_rescon.clusters.idle.LOCK_TIMEOUT", 0.01)
    ups: list[Callable[[], None]] = [lambda: files.write_hours(4), lambda: watch(files, Day().head())]
    again = iter(ups)

    def looks(hour: float) -> Look:
        if 1.95 < hour < 2.05 or 2.95 < hour < 3.05:
            next(again)()
        return AT_REST

    assert Day(looks=looks).watch(files) == [*ENDED, "end machines at 7.0"]


def test_only_one_process_watches(files: IdleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.clusters.idle.LOCK_TIMEOUT", 0.01)
    files.folder.mkdir()
    with FileLock(files.lock):
        assert Day().watch(files) == []
        state = files.read_state()
        assert state is not None
        assert state.is_watched
    state = files.read_state()
    assert state is not None
    assert "will not: the process that watches does not run" in state.describe()


def test_an_unwritable_disk_does_not_keep_the_cluster(files: IdleFiles) -> None:
    (files.folder / "state.json").mkdir(parents=True)  # a write to it fails
    assert Day().watch(files) == [*ENDED, "end machines at 4.0"]


def test_a_state_of_another_version_is_not_read(files: IdleFiles) -> None:
    files.folder.mkdir()
    (files.folder / "state.json").write_text('{"hours": 9, "used": 0, "by": "job a", "new": 1}')
    state = files.read_state()
    assert state is not None
    assert (state.hours, state.by) == (4, "its start")


def test_the_hours_survive_a_new_container(files: IdleFiles, tmp_path: Path) -> None:
    """The setting is in the folder of the token, which Ray mounts from the machine; the state is not."""
    head = IdleFiles.of_head()
    assert head.setting.parent == Path.home() / ".ray"
    again = IdleFiles(setting=files.setting, folder=tmp_path / "new container")
    assert Day().watch(again) == [*ENDED, "end machines at 4.0"]


def test_status_shows_end(capsys: pytest.CaptureFixture[str], stands: Any, played: Any, file: Path) -> None:
    at_rest = HeadState(nodes=[], jobs=[], demands=[], mlflow_answers=True)
    idle = IdleState(hours=2.5, used=86400.0, by="job a-1")
    state = HeadState(**{**vars(at_rest), "idle": idle})
    played.answers = {"inspect": [Done(code=0, output=state.as_json())]}
    assert main(["status", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Ends itself at 1970-01-02 02:30 UTC, after 2.5 h without use." in said
    assert main(["status", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["idle"]["hours"] == 2.5
    # A head of an earlier version.
    assert HeadState.parse(stands().output) is not None


def test_running_and_pending_jobs_count_as_use() -> None:
    answer = [
        {"submission_id": "a-1", "status": "RUNNING"},
        {"submission_id": "a-2", "status": "PENDING"},
        {"submission_id": "a-3", "status": "SUCCEEDED"},
        {"submission_id": None, "job_id": "02000000", "type": "DRIVER", "status": "RUNNING"},
    ]
    assert parse_running(answer) == ["job a-1", "job a-2", "job 02000000"]


def test_a_truncated_dashboard_response_is_a_cluster_error() -> None:
    """Any other exception would end the process that watches, and the cluster would be billed for ever."""
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"status"'
    with served_once(answer) as url, pytest.raises(ClusterError, match="Ray's dashboard must answer"):
        running_jobs(url)


@pytest.mark.parametrize(("ray_runs", "uses"), [(True, 1), (False, 0)])
def test_an_unresponsive_ray_counts_as_use_and_an_ended_one_does_not(
    ray_runs: bool, uses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[str]:
        raise ClusterError("the dashboard must answer")

    monkeypatch.setattr(this_head, "running_jobs", refuse)
    assert this_head.GCS == "gcs_server"
    # Not that of another Ray on this machine.
    monkeypatch.setattr(this_head, "GCS", "gcs_server_here")
    name = tmp_path / ("gcs_server_here" if ray_runs else "gcs_server")
    name.symlink_to(sys.executable)
    process = subprocess.Popen(
        [name, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(look_at_head(tmp_path).uses) == uses
    finally:
        process.kill()
        process.communicate()


@pytest.mark.s3
def test_the_newest_heartbeat_of_all_searches_counts(s3: S3Server, tmp_path: Path) -> None:
    assert beat_age("") == beat_age(str(tmp_path)) == math.inf
    url = f"{s3.bucket()}/searches"
    storage = RemoteFolder.connect(StorageUrl(url=url))
    for name in ("first", "second"):
        storage.write(f"{name}/space.yaml", b"")
    assert beat_age(url) == math.inf
    with hold_lease(SharedValue(storage.folder("first/lease")), name="first"):
        assert beat_age(url) < 60
    s3.refuses = lambda *_: True
    with pytest.raises(OSError, match="listing"):
        beat_age(url)


def up(file: Path, hours: str) -> int:
    return main(["up", str(file), "--yes", "--end-after-idle", hours])


AWS_YAML = "cluster_name: c\nprovider: {type: aws, region: us-west-2}\navailable_node_types: {}\n"


@pytest.fixture
def aws(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tune_rescon.clusters.check.check_file", lambda _: [])
    file.write_text(AWS_YAML)
    return file


def test_up_sets_the_hours_on_the_head_before_it_waits_for_workers(
    aws: Path, played: Any, stands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    played.answers = {"get-head-ip": [Done(code=1)], "inspect": [stands(0)]}
    assert up(aws, "4") == 0
    words = [words.split()[0] for words in played.ran]
    assert words == ["get-head-ip", "up", "exec", "exec"]
    assert "tune_rescon.cluster end-when-idle --hours 4'" in played.ran[2]
    assert "c ends itself after 4 h without use" in capsys.readouterr().out
    assert up(aws, "0") == 0
    assert "--hours 0'" in played.ran_with("end-when-idle")[-1]


def test_up_without_the_option_keeps_the_hours(aws: Path, played: Any, stands: Any) -> None:
    played.answers = {"get-head-ip": [Done(code=1)], "inspect": [stands(0)]}
    assert main(["up", str(aws), "--yes"]) == 0
    assert not played.ran_with("end-when-idle")


def test_up_fails_if_the_head_may_not_end_the_cluster(
    aws: Path, played: Any, stands: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Done(code=1, output="The command failed: the head must have the right to end the machines\n")
    played.answers = {
        "get-head-ip": [Done(code=1)],
        "end-when-idle": [refused],
        "inspect": [stands(0)],
    }
    assert up(aws, "4") == 1
    said = capsys.readouterr().err
    assert "c runs, and will NOT end itself" in said
    assert "must have the right" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (CLUSTER_YAML, "These machines are yours."),
        ("cluster_name: c\nprovider: {type: gcp}\n", "`submit --down`"),
    ],
)
def test_end_after_idle_is_refused_before_start_if_unsupported(
    text: str, words: str, file: Path, played: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert up(file, "4") == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: --end-after-idle: a cluster can end itself where its provider is aws, but")
    assert words in said
    assert played.ran == []


@pytest.mark.parametrize("hours", ["-1", "nan", "many"])
def test_invalid_hours_are_refused(hours: str, file: Path, played: Any) -> None:
    assert up(file, hours) == 2
    assert played.ran == []
