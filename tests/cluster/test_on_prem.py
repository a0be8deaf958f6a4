"""cluster/local.yaml on three hosts: a worker loses its power, then the head.

One story: each test begins where the one before it ended. `make cluster-smoke` leaves out the head's part.
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
from tests.cluster.lab.operator import Clock, JobLog, command, overlaid, status, submitted, wait_for

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]

HEAD, FIRST, SECOND = "172.31.200.10", "172.31.200.11", "172.31.200.12"
STORAGE = "s3://lab/tune_rescon"
EPOCHS = 27

#: Two trials, one on each worker, as long as the story takes; small, for all hosts share two processors.
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


def smaller(cluster: dict[str, Any]) -> None:
    cluster["auth"]["ssh_private_key"] = str(KEY)
    start = cluster["worker_start_ray_commands"]
    start[-1] += " --num-cpus=1"
    # The image has what the setup would install, and not in a virtual environment of this user's.
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
    return overlaid("cluster/local.yaml", NAMES, smaller)


@pytest.fixture(scope="module")
def story() -> dict[str, Any]:
    """What a later part must know of an earlier one."""
    return {}


def test_up_counts_every_worker(file: Path, clock: Clock) -> None:
    began = time.monotonic()
    said = command("tune_rescon.cluster", "up", file, "--yes")
    clock.note("up: to the head and both workers", began)
    assert "2 of 2 workers are there" in said


def test_dashboard_requires_the_token(hosts: dict[str, Host]) -> None:
    ask = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8265/api/jobs/"
    assert hosts["head"].run(ask).stdout == "401"
    with_token = ask + ' -H "Authorization: Bearer $(cat ~/.ray/auth_token)"'
    assert hosts["head"].run(with_token).stdout == "200"
    assert hosts["head"].run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_a_search_runs_on_the_workers(
    file: Path, hosts: dict[str, Host], clock: Clock, story: dict[str, Any]
) -> None:
    began = time.monotonic()
    story["job"] = JobLog(hosts["head"], submitted(file, "--name", "a", "--", *SEARCH))
    story["job"].wait_for_words("trial_0000 starts", 300)
    clock.note("submit: to the first trial's start", began)
    story["job"].wait_for_words(" epoch 1/", 300)
    clock.note("submit: to the first epoch's report", began)
    story["job"].wait_for_epochs({(0, 1), (1, 1)}, 300)
    running = "pgrep -fc '^ray::(run_trial|ImplicitFunc)' || true"
    assert [int(hosts[name].run(running).stdout) for name in ("head", "first", "second")] == [0, 1, 1]


def test_a_trial_resumes_after_power_cut(hosts: dict[str, Host], clock: Clock, story: dict[str, Any]) -> None:
    job: JobLog = story["job"]
    job.wait_for_epochs({(0, 2), (1, 2)}, 300)
    before = {trial: max(e for t, e in job.epochs() if t == trial) for trial in (0, 1)}
    cut = time.monotonic()
    hosts["second"].cut_power()
    hosts["second"].start()
    job.wait_for_words("starts again after epoch", 300)
    clock.note("cut of a worker: to its trial handed out again", cut)
    (line,) = [line for line in job.text().splitlines() if "starts again after epoch" in line]
    trial, recorded = int(line[6:10]), int(line.split("after epoch ")[1].split(":")[0])
    assert recorded >= before[trial] - 1
    job.wait_for_epochs({(trial, recorded + 1)}, 300)
    clock.note("cut of a worker: to the trial's next epoch", cut)
    # From its checkpoint: no epoch was trained twice for the record.
    assert len(job.epochs()) == len(set(job.epochs()))


@pytest.mark.nightly
def test_a_search_resumes_on_a_replaced_head(
    file: Path, hosts: dict[str, Host], clock: Clock, story: dict[str, Any]
) -> None:
    cut = time.monotonic()
    head = hosts["head"]
    story["before"] = story["job"].epochs()
    head.cut_power()
    # Another machine with the same address: nothing on its disk is the old one's.
    head.wipe()
    head.start()
    said = command("tune_rescon.cluster", "up", file, "--yes")
    assert "2 of 2 workers are there" in said
    clock.note("cut of the head: to a new cluster", cut)
    job = JobLog(head, submitted(file, "--resume", "a"))
    job.wait_for_words("2 of 2 trials ended", 600)
    clock.note("cut of the head: to the search's end", cut)
    done = dict.fromkeys(story["before"] + job.epochs())
    assert set(done) == {(trial, epoch) for trial in (0, 1) for epoch in range(1, EPOCHS + 1)}


def test_every_trial_finishes_and_down_keeps_the_bucket(file: Path, clock: Clock) -> None:
    wait_for("end of the job", lambda: status(file)["jobs"][-1]["status"] == "SUCCEEDED", 480, pause=2)
    said = command("tune_rescon.report", "a", "--storage", STORAGE, "--json")
    found = json.loads(said[said.index("{") :])
    assert [trial["state"] for trial in found["trials"]] == ["finished", "finished"]
    assert [trial["epochs"] for trial in found["trials"]] == [EPOCHS, EPOCHS]
    began = time.monotonic()
    command("tune_rescon.cluster", "down", file)
    clock.note("down", began)
    kept = {one["Key"] for one in client("s3").list_objects_v2(Bucket="lab")["Contents"]}
    assert any(key.startswith("mlflow/database/") for key in kept), kept
    assert "tune_rescon/a/best.yaml" in kept
