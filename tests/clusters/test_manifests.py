"""``cluster/kuberay.yaml`` and ``cluster/sky.yaml``, checked against KubeRay's and SkyPilot's schemas."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tune_rescon.search import search

ROOT = Path(__file__).resolve().parents[2]

#: The fields that these objects may have here, from the definitions of KubeRay 1.6 (`ray.io/v1`).
RAY_JOB = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"),
    *("activeDeadlineSeconds", "submissionMode", "submitterPodTemplate", "runtimeEnvYAML", "suspend"),
}
RAY_CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"),
    *("workerGroupSpecs", "gcsFaultToleranceOptions"),
}
HEAD_GROUP = {"rayStartParams", "template", "resources", "serviceType"}
WORKER_GROUP = {*HEAD_GROUP, "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"} - {
    "serviceType"
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load(ROOT / "cluster" / name)
    return found


@pytest.fixture
def job() -> dict[str, Any]:
    spec: dict[str, Any] = read("kuberay.yaml")["spec"]
    return spec


@pytest.fixture
def cluster(job: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["rayClusterSpec"]
    return spec


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a command line of the search; fails where the command would."""
    assert words[:3] == ["python", "-m", "tune_rescon.search"]
    return search.make_context("search", words[3:]).params


def test_rayjob_has_only_fields_known_to_kuberay(job: Mapping[str, Any], cluster: Mapping[str, Any]) -> None:
    assert job.keys() <= RAY_JOB
    assert cluster.keys() <= RAY_CLUSTER
    assert cluster["headGroupSpec"].keys() <= HEAD_GROUP
    assert all(group.keys() <= WORKER_GROUP for group in cluster["workerGroupSpecs"])


def test_pods_validate_against_the_kubernetes_schema(cluster: Mapping[str, Any]) -> None:
    """Of the oldest Kubernetes that the file names, and nothing is in them that it would not read."""
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for template in (group["template"] for group in groups):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **template}
        kubernetes_validate.validate(pod, "1.29", strict=True)
        pod["spec"]["tolerationz"] = []
        with pytest.raises(Exception, match="tolerationz"):
            kubernetes_validate.validate(pod, "1.29", strict=True)


def test_a_failed_rayjob_is_retried_with_a_command_that_resumes(job: Mapping[str, Any]) -> None:
    options = parsed(shlex.split(job["entrypoint"]))
    assert options["resume_or_start"] == "att92"
    assert options["space_name"] == "att92"
    assert options["address"] == "auto"
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0


def test_mlflow_sidecar_serves_the_drivers_tracking_uri_on_localhost(
    job: Mapping[str, Any], cluster: Mapping[str, Any]
) -> None:
    from tune_rescon.cluster import cluster as commands

    pod = cluster["headGroupSpec"]["template"]["spec"]
    (mlflow,) = pod["initContainers"]
    assert mlflow["restartPolicy"] == "Always", "it runs beside the head, and is begun again"
    assert mlflow["command"] == ["python", "-m", "tune_rescon.cluster", "mlflow"]
    options = commands.commands["mlflow"].make_context("mlflow", list(mlflow["args"])).params
    assert parsed(shlex.split(job["entrypoint"]))["tracking_uri"] == f"http://127.0.0.1:{options['port']}"
    assert options["host"] == "127.0.0.1"
    assert options["keep"].startswith("s3://")
    assert options["artifacts"].startswith("s3://")


def test_workers_request_and_tolerate_gpu_nodes(cluster: Mapping[str, Any]) -> None:
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        asked = container["resources"]
        assert asked["requests"]["nvidia.com/gpu"] == asked["limits"]["nvidia.com/gpu"] == "1"
        tolerated = {toleration["key"]: toleration for toleration in pod["tolerations"]}
        assert tolerated["nvidia.com/gpu"]["operator"] == "Exists"


def test_every_pod_has_the_image_of_the_dockerfile(cluster: Mapping[str, Any]) -> None:
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    images = {
        container["image"]
        for pod in pods
        for container in (*pod.get("initContainers", ()), *pod["containers"])
    }
    (image,) = images
    tag = image.partition(":")[2]
    assert f"FROM rayproject/ray:{tag}" in (ROOT / "Dockerfile").read_text().replace("ARG BASE=", "FROM ")


def test_skypilot_recovers_a_lost_machine_with_the_same_command() -> None:
    task = read("sky.yaml")
    resources = task["resources"]
    assert resources["use_spot"] is True
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75, 130]
    command = task["run"].splitlines()[-1]
    assert parsed(shlex.split(command))["resume_or_start"] == "att92"
    subprocess.run(["bash", "-n", "-c", task["setup"] + task["run"]], check=True)


READ_BY_SKYPILOT = """
import sys
from sky import Task
task = Task.from_yaml(sys.argv[1])
print(*sorted(next(iter(r.accelerators)) for r in task.resources), {r.use_spot for r in task.resources})
"""


@pytest.mark.timeout(120)  # SkyPilot takes its clouds' libraries
def test_skypilot_reads_its_task(tmp_path: Path) -> None:
    if importlib.util.find_spec("sky") is None:
        pytest.skip("SkyPilot is not installed: pip install skypilot")
    done = subprocess.run(
        [sys.executable, "-c", READ_BY_SKYPILOT, str(ROOT / "cluster" / "sky.yaml")],
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "A10G L4 L40S {True}"


def test_a_misspelt_option_in_a_manifest_is_detected() -> None:
    with pytest.raises(click.UsageError):
        parsed(["python", "-m", "tune_rescon.search", "--resume-or-begin", "a"])
