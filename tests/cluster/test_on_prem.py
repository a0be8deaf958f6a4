"""cluster/local.yaml on three hosts: a worker loses power, then the head.

The tests are one scenario: each continues where the previous one ended. `make cluster-smoke` leaves out the
loss of the head.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab.cloud import Moto, client, make_bucket
from tests.cluster.lab.hosts import KEY, Host, Network
from tests.cluster.lab.operator import (
    JobLog,
    PhaseTimer,
    cluster_status,
    run_command,
    submit_search,
    wait_for,
    write_cluster_file,
)

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

HEAD, FIRST, SECOND = "172.31.200.10", "172.31.200.11", "172.31.200.12"
STORAGE = "s3://lab/tune_rescon"
EPOCHS = 27

#: Two trials, one on each worker, that last as long as the scenario. They are small, because all hosts share
#: two processors.
SEARCH = [
    *("--space", "digits", "--trials", "2", "--set", "scheduler.type=none"),
    *("--set", f"fidelity.max={EPOCHS}", "--set", "dataset.limit=600", "--set", "initial=[]"),
]

NAMES = {
    "CHANGE-head": HEAD,
    "CHANGE-first": FIRST,
    "CHANGE-second": SECOND,
    "CHANGE-user": "root",
    "CHANGE-bucket": "lab",
}


def adapt_to_lab(cluster: dict[str, Any]) -> None:
    cluster["auth"]["ssh_private_key"] = str(KEY)
    start_command = cluster["worker_start_ray_commands"]
    start_command[-1] += " --num-cpus=1"
    # The requirements are installed already, but not in the virtual environment of the setup commands.
    cluster["setup_commands"] = [
        line.replace("PATH=~/.tune_rescon_venv/bin:$PATH ", "") for line in cluster["setup_commands"]
    ]


@pytest.fixture(scope="module")
def hosts(network: Network) -> Iterator[dict[str, Host]]:
    moto = Moto()
    make_bucket("lab")
    addresses = {"head": HEAD, "first": FIRST, "second": SECOND}
    yield {name: network.add(name, address) for name, address in addresses.items()}
    moto.stop()


@pytest.fixture(scope="module")
def file(hosts: dict[str, Host]) -> Path:
    del hosts
    return write_cluster_file("cluster/local.yaml", NAMES, adapt_to_lab)


@pytest.fixture(scope="module")
def scenario() -> dict[str, Any]:
    """Values that later tests of the scenario need."""
    return {}


def test_up_counts_every_worker(file: Path, timer: PhaseTimer) -> None:
    started_at = time.monotonic()
    output = run_command("tune_rescon.cluster", "up", file, "--yes")
    timer.record("up: to the head and both workers", started_at)
    assert "2 of 2 workers are there" in output


def test_dashboard_requires_the_token(hosts: dict[str, Host]) -> None:
    curl = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert hosts["head"].run(curl).stdout == "401"
    with_token = curl + ' -H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
    assert hosts["head"].run(with_token).stdout == "200"
    assert hosts["head"].run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_a_search_runs_on_the_workers(
    file: Path, hosts: dict[str, Host], timer: PhaseTimer, scenario: dict[str, Any]
) -> None:
    started_at = time.monotonic()
    scenario["job"] = JobLog(hosts["head"], submit_search(file, "--name", "a", "--", *SEARCH))
    scenario["job"].wait_for_text("trial_0000 starts", 300)
    timer.record("submit: to the first trial's start", started_at)
    scenario["job"].wait_for_text(" epoch 1/", 300)
    timer.record("submit: to the first epoch's report", started_at)
    scenario["job"].wait_for_epochs({(0, 1), (1, 1)}, 300)
    running = "pgrep -fc '^ray::(run_trial|ImplicitFunc)' || true"
    assert [int(hosts[name].run(running).stdout) for name in ("head", "first", "second")] == [0, 1, 1]


def test_a_trial_resumes_after_power_cut(
    hosts: dict[str, Host], timer: PhaseTimer, scenario: dict[str, Any]
) -> None:
    job: JobLog = scenario["job"]
    job.wait_for_epochs({(0, 2), (1, 2)}, 300)
    before = {trial: max(e for t, e in job.epochs() if t == trial) for trial in (0, 1)}
    cut = time.monotonic()
    hosts["second"].cut_power()
    hosts["second"].start()
    job.wait_for_text("starts again after epoch", 300)
    timer.record("cut of a worker: to its trial handed out again", cut)
    (line,) = [line for line in job.text().splitlines() if "starts again after epoch" in line]
    trial, recorded = int(line[6:10]), int(line.split("after epoch ")[1].split(":")[0])
    assert recorded >= before[trial] - 1
    job.wait_for_epochs({(trial, recorded + 1)}, 300)
    timer.record("cut of a worker: to the trial's next epoch", cut)
    # The trial resumed from its checkpoint, so no epoch is reported twice.
    assert len(job.epochs()) == len(set(job.epochs()))


@pytest.mark.nightly
def test_a_search_resumes_on_a_replaced_head(
    file: Path, hosts: dict[str, Host], timer: PhaseTimer, scenario: dict[str, Any]
) -> None:
    cut = time.monotonic()
    head = hosts["head"]
    scenario["before"] = scenario["job"].epochs()
    head.cut_power()
    # The new machine has the same address and an empty disk.
    head.wipe()
    head.start()
    output = run_command("tune_rescon.cluster", "up", file, "--yes")
    assert "2 of 2 workers are there" in output
    timer.record("cut of the head: to a new cluster", cut)
    job = JobLog(head, submit_search(file, "--resume", "a"))
    job.wait_for_text("2 of 2 trials ended", 600)
    timer.record("cut of the head: to the search's end", cut)
    done = dict.fromkeys(scenario["before"] + job.epochs())
    assert set(done) == {(trial, epoch) for trial in (0, 1) for epoch in range(1, EPOCHS + 1)}


def test_every_trial_finishes_and_down_keeps_the_bucket(file: Path, timer: PhaseTimer) -> None:
    wait_for(
        "end of the job", lambda: cluster_status(file)["jobs"][-1]["status"] == "SUCCEEDED", 480, pause=2
    )
    output = run_command("tune_rescon.report", "a", "--storage", STORAGE, "--json")
    found = json.loads(output[output.index("{") :])
    assert [trial["state"] for trial in found["trials"]] == ["finished", "finished"]
    assert [trial["epochs"] for trial in found["trials"]] == [EPOCHS, EPOCHS]
    started_at = time.monotonic()
    run_command("tune_rescon.cluster", "down", file)
    timer.record("down", started_at)
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
    assert "tune_rescon/a/best.yaml" in kept
