"""A cluster that ends itself: the idle rule, the uses that prevent the end, and the order of the end."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

from tests.clusters.conftest import CLUSTER_YAML, NO_HEAD, FakeRay, InspectOutput, served_once
from tests.conftest import S3Server
from tune_rescon.cluster import main
from tune_rescon.clusters import idle_head
from tune_rescon.clusters.commands import Completed
from tune_rescon.clusters.idle import HeadActions, IdleFiles, IdleRule, IdleState, Observation, watch
from tune_rescon.clusters.idle_head import heartbeat_age, observe_head
from tune_rescon.clusters.status import HeadState, parse_running, running_jobs
from tune_rescon.errors import ClusterError
from tune_rescon.storage import RemoteError, RemoteFolder, SharedValue, StorageUrl
from tune_rescon.tuning.lease import hold_lease

HOUR = 3600.0
IDLE = Observation()
IN_USE = Observation(uses=("job a-1",))


def observed_rule(*observations: tuple[float, Observation]) -> IdleRule:
    rule = IdleRule(0.0)
    for now, observation in observations:
        rule.observe(observation, now)
    return rule


def ssh_sessions(*names: str) -> Observation:
    return Observation(sessions=frozenset(names))


def test_a_cluster_is_due_after_the_given_idle_hours() -> None:
    rule = observed_rule((HOUR, IN_USE), (1.1 * HOUR, IDLE))
    assert not rule.is_due(4, 4.9 * HOUR)
    assert rule.is_due(4, 5 * HOUR)
    assert (rule.used, rule.by) == (HOUR, "job a-1")


def test_its_start_counts_as_use() -> None:
    rule = observed_rule((0.5 * HOUR, IDLE))
    assert not rule.is_due(4, 3.99 * HOUR)
    assert rule.is_due(4, 4 * HOUR)


def test_a_cluster_in_use_is_never_due() -> None:
    rule = observed_rule((HOUR, IN_USE))
    assert not rule.is_due(4, 1000 * HOUR), "a late observation, as after a suspend, must not count as idle"


def test_a_long_connection_is_use_and_a_short_one_only_delays_the_end() -> None:
    tunnel = observed_rule(
        (5 * HOUR, ssh_sessions("a")), (5.1 * HOUR, ssh_sessions("a", "b")), (6 * HOUR, IDLE)
    )
    assert (tunnel.used, tunnel.by) == (5.1 * HOUR, "an ssh connection")
    # As `cluster status` every few minutes, which opens a new connection each time.
    short = observed_rule((5 * HOUR, ssh_sessions("a")), (5.1 * HOUR, ssh_sessions("b")))
    assert short.used == 0.0
    assert not short.is_due(4, 5.1 * HOUR), "a job may be about to be submitted"
    short.observe(IDLE, 5.2 * HOUR)
    assert short.is_due(4, 5.2 * HOUR)


def test_database_writes_and_heartbeats_count_from_their_own_time() -> None:
    rule = observed_rule((5 * HOUR, Observation(seconds_since_write=2 * HOUR)))
    assert (rule.used, rule.by) == (3 * HOUR, "a change of MLflow's database")
    rule.record_use(4 * HOUR, "a search's heartbeat", 5 * HOUR)
    assert rule.used == 3 * HOUR, "an older use"
    rule.record_use(-60.0, "a search's heartbeat", 5 * HOUR)
    assert (rule.used, rule.by) == (5 * HOUR, "a search's heartbeat"), "no clock is ahead of this one"


@dataclass
class SimulatedHead:
    """A head with given observations, heartbeats and errors as functions of the hour of a simulated clock."""

    observe: Callable[[float], Observation] = lambda _: IDLE
    heartbeat_age: Callable[[float], float] = lambda _: math.inf
    copy_fails_until: float = 0.0
    termination_fails_until: float = 0.0
    now: float = 0.0
    actions: list[str] = field(default_factory=list)

    def head(self) -> HeadActions:
        return HeadActions(
            observe=lambda: self.observe(self.now / HOUR),
            heartbeat_age=lambda: self.heartbeat_age(self.now / HOUR) * HOUR,
            end_mlflow=self.end_mlflow,
            start_mlflow=lambda: self.actions.append("start MLflow"),
            stop_ray=lambda: self.actions.append("stop Ray"),
            end_machines=self.end_machines,
        )

    def end_mlflow(self) -> None:
        self.actions.append("end MLflow")
        if self.now < self.copy_fails_until * HOUR:
            raise ClusterError("its last changes are not kept")

    def end_machines(self) -> None:
        if self.now < self.termination_fails_until * HOUR:
            self.actions.append("refused")
            raise ClusterError("throttled")
        self.actions.append(f"end machines at {self.now / HOUR:.1f}")

    def wait(self, seconds: float) -> None:
        assert self.now < 100 * HOUR, self.actions
        self.now += seconds

    def watch(self, files: IdleFiles) -> list[str]:
        watch(files, self.head(), interval=0.1 * HOUR, clock=lambda: self.now, wait=self.wait)
        return self.actions


@pytest.fixture
def files(tmp_path: Path) -> IdleFiles:
    files = IdleFiles(setting=tmp_path / "token" / "hours", folder=tmp_path / "idle")
    files.write_hours(4)
    return files


END_ACTIONS = ["end MLflow", "stop Ray"]


def test_mlflow_is_copied_then_ray_ends_then_the_machines(files: IdleFiles) -> None:
    assert SimulatedHead().watch(files) == [*END_ACTIONS, "end machines at 4.0"]


def test_a_cluster_with_a_job_never_ends(files: IdleFiles) -> None:
    head = SimulatedHead(observe=lambda hour: IN_USE if hour < 20 else IDLE)
    (*_, last) = head.watch(files)
    assert last == "end machines at 23.9"


def test_a_job_submitted_while_mlflow_is_copied_keeps_the_cluster(files: IdleFiles) -> None:
    observations = iter([IDLE] * 41 + [ssh_sessions("submit")] + [IN_USE] * 20)
    head = SimulatedHead(observe=lambda _: next(observations, IDLE))
    actions = head.watch(files)
    assert actions[:3] == ["end MLflow", "start MLflow", "end MLflow"]
    assert actions[-1] == "end machines at 10.0"


def test_a_search_with_heartbeats_keeps_the_cluster(files: IdleFiles) -> None:
    head = SimulatedHead(heartbeat_age=lambda hour: 0.01 if hour < 6 else hour - 6)
    assert head.watch(files) == [*END_ACTIONS, "end machines at 10.0"]


def test_an_unreadable_storage_keeps_the_cluster_and_is_reported(files: IdleFiles) -> None:
    messages = []

    def heartbeat_age(hour: float) -> float:
        if hour < 7:
            if (state := files.read_state()) and state.problem:
                messages.append(state.describe())
            raise RemoteError("503 Slow Down")
        return math.inf

    assert SimulatedHead(heartbeat_age=heartbeat_age).watch(files) == [*END_ACTIONS, "end machines at 7.0"]
    assert messages[0].endswith("It could not be ended: 503 Slow Down")


def test_an_observation_that_fails_counts_as_use_and_does_not_end_the_watch(
    files: IdleFiles, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(hour: float) -> Observation:
        if 2 < hour < 6:
            raise KeyError("status")
        return IDLE

    assert SimulatedHead(observe=observe).watch(files) == [*END_ACTIONS, "end machines at 9.9"]
    assert "the head could not be observed" in caplog.text


def test_a_failed_database_copy_keeps_the_cluster(files: IdleFiles) -> None:
    actions = SimulatedHead(copy_fails_until=4.25).watch(files)
    assert actions == ["end MLflow", "start MLflow"] * 3 + [*END_ACTIONS, "end machines at 4.3"]


def test_an_mlflow_server_that_ended_by_itself_is_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    commands, started = iter([["first"], []]), []
    monkeypatch.setattr(idle_head, "mlflow_command", lambda _: next(commands))
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    head = idle_head.head_actions()
    head.end_mlflow()
    head.end_mlflow()
    head.start_mlflow()
    assert started == [["first"]]


def test_a_refused_termination_is_retried(files: IdleFiles) -> None:
    actions = SimulatedHead(termination_fails_until=4.0 + 25 / 3600).watch(files)
    assert actions == [*END_ACTIONS, "refused", "refused", "refused", "end machines at 4.0"]


def test_changed_hours_are_noticed_and_zero_hours_end_the_watch(files: IdleFiles) -> None:
    def observe(hour: float) -> Observation:
        if 3 < hour < 3.2:
            files.write_hours(9)
        if hour > 6:
            files.write_hours(0)
        return IDLE

    assert SimulatedHead(observe=observe).watch(files) == []
    assert files.read_state() is None


def test_another_up_counts_as_use(files: IdleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `up` that restarts the head does so too; its new process finds that another one watches."""
    monkeypatch.setattr("tune_rescon.clusters.idle.LOCK_TIMEOUT", 0.01)
    calls: list[Callable[[], None]] = [
        lambda: files.write_hours(4),
        lambda: watch(files, SimulatedHead().head()),
    ]
    next_call = iter(calls)

    def observe(hour: float) -> Observation:
        if 1.95 < hour < 2.05 or 2.95 < hour < 3.05:
            next(next_call)()
        return IDLE

    assert SimulatedHead(observe=observe).watch(files) == [*END_ACTIONS, "end machines at 7.0"]


def test_only_one_process_watches(files: IdleFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_rescon.clusters.idle.LOCK_TIMEOUT", 0.01)
    files.folder.mkdir()
    with FileLock(files.lock):
        assert SimulatedHead().watch(files) == []
        state = files.read_state()
        assert state is not None
        assert state.is_watched
    state = files.read_state()
    assert state is not None
    assert "will not: the process that watches does not run" in state.describe()


def test_an_unwritable_disk_does_not_keep_the_cluster(files: IdleFiles) -> None:
    (files.folder / "state.json").mkdir(parents=True)  # a write to it fails
    assert SimulatedHead().watch(files) == [*END_ACTIONS, "end machines at 4.0"]


def test_a_state_of_another_version_is_not_read(files: IdleFiles) -> None:
    files.folder.mkdir()
    (files.folder / "state.json").write_text('{"hours": 9, "used": 0, "by": "job a", "new": 1}')
    state = files.read_state()
    assert state is not None
    assert (state.hours, state.by) == (4, "its start")


def test_the_hours_survive_a_new_container(files: IdleFiles, tmp_path: Path) -> None:
    """The hours are kept in the token's directory, which Ray mounts from the machine; the state is not."""
    head = IdleFiles.of_head()
    assert head.setting.parent == Path.home() / ".ray"
    new_files = IdleFiles(setting=files.setting, folder=tmp_path / "new container")
    assert SimulatedHead().watch(new_files) == [*END_ACTIONS, "end machines at 4.0"]


def test_status_shows_when_the_cluster_ends(
    capsys: pytest.CaptureFixture[str], inspect_output: InspectOutput, fake_ray: FakeRay, file: Path
) -> None:
    at_rest = HeadState(nodes=[], jobs=[], demands=[], mlflow_answers=True)
    idle = IdleState(hours=2.5, used=86400.0, by="job a-1")
    state = HeadState(**{**vars(at_rest), "idle": idle})
    fake_ray.answers = {"inspect": [Completed(code=0, output=state.as_json())]}
    assert main(["status", str(file)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Ends itself at 1970-01-02 02:30 UTC, after 2.5 h without use." in output
    assert main(["status", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["idle"]["hours"] == 2.5
    # A head of an earlier version.
    assert HeadState.parse(inspect_output().output) is not None


def test_running_and_pending_jobs_count_as_use() -> None:
    answer = [
        {"submission_id": "a-1", "status": "RUNNING"},
        {"submission_id": "a-2", "status": "PENDING"},
        {"submission_id": "a-3", "status": "SUCCEEDED"},
        {"submission_id": None, "job_id": "02000000", "type": "DRIVER", "status": "RUNNING"},
    ]
    assert parse_running(answer) == ["job a-1", "job a-2", "job 02000000"]


def test_a_truncated_dashboard_response_is_a_cluster_error() -> None:
    """Any other exception would end the idle watch, and the cluster would run forever."""
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"status"'
    with served_once(answer) as url, pytest.raises(ClusterError, match="Ray's dashboard must answer"):
        running_jobs(url)


@pytest.mark.parametrize(("ray_runs", "uses"), [(True, 1), (False, 0)])
def test_an_unresponsive_ray_counts_as_use_and_an_ended_one_does_not(
    ray_runs: bool, uses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[str]:
        raise ClusterError("the dashboard must answer")

    monkeypatch.setattr(idle_head, "running_jobs", refuse)
    assert idle_head.GCS == "gcs_server"
    # Another Ray may run on this machine.
    monkeypatch.setattr(idle_head, "GCS", "gcs_server_here")
    name = tmp_path / ("gcs_server_here" if ray_runs else "gcs_server")
    name.symlink_to(sys.executable)
    process = subprocess.Popen(
        [name, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(observe_head(tmp_path).uses) == uses
    finally:
        process.kill()
        process.communicate()


@pytest.mark.s3
def test_the_newest_heartbeat_of_all_searches_counts(s3: S3Server, tmp_path: Path) -> None:
    assert heartbeat_age("") == heartbeat_age(str(tmp_path)) == math.inf
    url = f"{s3.bucket()}/searches"
    storage = RemoteFolder.connect(StorageUrl(url=url))
    for name in ("first", "second"):
        storage.write(f"{name}/space.yaml", b"")
    assert heartbeat_age(url) == math.inf
    with hold_lease(SharedValue(storage.folder("first/lease")), name="first"):
        assert heartbeat_age(url) < 60
    s3.should_reject = lambda *_: True
    with pytest.raises(OSError, match="listing"):
        heartbeat_age(url)


def up(file: Path, hours: str) -> int:
    return main(["up", str(file), "--yes", "--end-after-idle", hours])


AWS_YAML = "cluster_name: c\nprovider: {type: aws, region: us-west-2}\navailable_node_types: {}\n"


@pytest.fixture
def aws_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tune_rescon.clusters.check.check_file", lambda _: [])
    file.write_text(AWS_YAML)
    return file


def test_up_sets_the_hours_on_the_head_before_it_waits_for_workers(
    aws_file: Path, fake_ray: FakeRay, inspect_output: InspectOutput, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "inspect": [inspect_output(0)]}
    assert up(aws_file, "4") == 0
    commands = [line.split()[0] for line in fake_ray.commands]
    assert commands == ["get-head-ip", "up", "exec", "exec"]
    assert "tune_rescon.cluster end-when-idle --hours 4'" in fake_ray.commands[2]
    assert "c ends itself after 4 h without use" in capsys.readouterr().out
    assert up(aws_file, "0") == 0
    assert "--hours 0'" in fake_ray.commands_with("end-when-idle")[-1]


def test_up_without_the_option_keeps_the_hours(
    aws_file: Path, fake_ray: FakeRay, inspect_output: InspectOutput
) -> None:
    fake_ray.answers = {"get-head-ip": [NO_HEAD], "inspect": [inspect_output(0)]}
    assert main(["up", str(aws_file), "--yes"]) == 0
    assert not fake_ray.commands_with("end-when-idle")


def test_up_fails_if_the_head_may_not_end_the_cluster(
    aws_file: Path, fake_ray: FakeRay, inspect_output: InspectOutput, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Completed(
        code=1, output="The command failed: the head must have the right to end the machines\n"
    )
    fake_ray.answers = {
        "get-head-ip": [NO_HEAD],
        "end-when-idle": [refused],
        "inspect": [inspect_output(0)],
    }
    assert up(aws_file, "4") == 1
    stderr = capsys.readouterr().err
    assert "c runs, and will NOT end itself" in stderr
    assert "must have the right" in stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLUSTER_YAML, "These machines are yours."),
        ("cluster_name: c\nprovider: {type: gcp}\n", "`submit --down`"),
    ],
)
def test_end_after_idle_is_refused_before_start_if_unsupported(
    text: str, message: str, file: Path, fake_ray: FakeRay, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert up(file, "4") == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(
        "Error: --end-after-idle: a cluster can end itself where its provider is aws, but"
    )
    assert message in stderr
    assert fake_ray.commands == []


@pytest.mark.parametrize("hours", ["-1", "nan", "many"])
def test_invalid_hours_are_refused(hours: str, file: Path, fake_ray: FakeRay) -> None:
    assert up(file, hours) == 2
    assert fake_ray.commands == []
