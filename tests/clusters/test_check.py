"""Findings of `check` about keys, machines, access and images in a modified shipped cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clusters.broken_files import CheckBroken, assert_error, assert_only_warning, has_finding
from tests.conftest import ROOT
from tune_rescon.clusters import check_file

#: The file, a text and its replacement (at its first occurrence), the rule, and a part of the finding.
ERRORS: list[tuple[str, str, str, str, str]] = [
    # YAML.
    ("cluster.yaml", "cluster_name: tune-rescon", "cluster_name: [x", "yaml", "is not YAML: "),
    ("cluster.yaml", "upscaling_speed: 1.0", "max_workers: 9", "yaml", 'found duplicate key "max_workers"'),
    # Ray's schema.
    (
        "cluster.yaml",
        "upscaling_speed: 1.0",
        "upscale_speed: 1.0",
        "unknown-key",
        "upscale_speed: unknown key 'upscale_speed' (did you mean 'upscaling_speed'?); known: auth, ",
    ),
    (
        "cluster.yaml",
        "min_workers: 0\n    max_workers: 8",
        "min_worker: 0",
        "unknown-key",
        "available_node_types.a10g.min_worker: unknown key 'min_worker' (did you mean 'min_workers'?)",
    ),
    (
        "cluster.yaml",
        "container_name:",
        "containername:",
        "unknown-key",
        "docker.containername: unknown key 'containername' (did you mean 'container_name'?)",
    ),
    ("cluster.yaml", "cluster_name: tune-rescon", "", "ray-schema", "cluster_name: is missing."),
    (
        "cluster.yaml",
        "max_workers: 8 ",
        "max_workers: many ",
        "ray-schema",
        "max_workers: must be of type integer, but got 'many'.",
    ),
    (
        "cluster.yaml",
        "head_node_type: head",
        "head_node_type: haed",
        "head-type",
        "head_node_type: unknown node type 'haed' (did you mean 'head'?); known: a100x8, a10g,",
    ),
    ("cluster/local.yaml", "head_ip:", "head:", "head-type", "provider.head_ip: is missing."),
    # Numbers of workers.
    (
        "cluster.yaml",
        "min_workers: 0\n    max_workers: 8",
        "min_workers: 9\n    max_workers: 8",
        "workers",
        "available_node_types.a10g: `0 <= min_workers <= max_workers` must hold, but got 9 and 8.",
    ),
    (
        "cluster.yaml",
        "min_workers: 0\n    max_workers: 8",
        "min_workers: -1\n    max_workers: 8",
        "workers",
        "must hold, but got -1 and 8.",
    ),
    ("cluster/local.yaml", "min_workers: 2", "min_workers: 3", "workers", "must hold, but got 3 and 2."),
    # Network access.
    (
        "cluster.yaml",
        "  type: aws",
        "  type: aws\n  security_group: {IpPermissions: [{FromPort: 22, IpRanges: [{CidrIp: 0.0.0.0/0}]}]}",
        "ingress",
        "IpPermissions[0].IpRanges[0].CidrIp: nothing may be open to the whole internet, but got 0.0.0.0/0.",
    ),
    (
        "cluster.yaml",
        "  type: aws",
        "  type: aws\n  security_group: {IpPermissions: [{Ipv6Ranges: [{CidrIpv6: '::/0'}]}]}",
        "ingress",
        "nothing may be open to the whole internet, but got ::/0. Name the addresses you come from.",
    ),
    (
        "cluster.yaml",
        "SecurityGroupIds: [sg-CHANGE] ",
        "#",
        "ingress",
        "available_node_types.head.node_config: every node type must name your own SecurityGroupIds. A group",
    ),
    (
        "cluster.yaml",
        "--dashboard-host=127.0.0.1",
        "--dashboard-host=0.0.0.0",
        "dashboard",
        "[1]: the head must be started with `--dashboard-host=127.0.0.1`, but got 0.0.0.0.",
    ),
    ("cluster.yaml", "--dashboard-host=127.0.0.1", "", "dashboard", "but got none."),
    ("cluster/slurm.sh", "--dashboard-host=127.0.0.1", "--dashboard-host ::", "dashboard", "but got ::."),
    (
        "cluster.yaml",
        "tune_rescon.cluster mlflow",
        "mlflow server --host 0.0.0.0",
        "listens",
        "[2]: a server must listen on 127.0.0.1, to be reached by a tunnel, but got `--host 0.0.0.0`.",
    ),
    # The token.
    (
        "cluster.yaml",
        "RAY_AUTH_MODE=token ray start --head",
        "ray start --head",
        "auth-mode",
        "head_start_ray_commands[1]: every `ray start` must have `RAY_AUTH_MODE=token` before it. Without",
    ),
    (
        "cluster.yaml",
        "RAY_AUTH_MODE=token ray start --address",
        "RAY_AUTH_MODE=disabled ray start --address",
        "auth-mode",
        "worker_start_ray_commands[1]: every `ray start` must have `RAY_AUTH_MODE=token` before it, but got",
    ),
    (
        "cluster.yaml",
        "worker_start_ray_commands:",
        "worker_setup_commands:",
        "auth-mode",
        "worker_start_ray_commands: must start Ray, but got no `ray start`. Ray's defaults take no token",
    ),
    (
        "cluster/kuberay.yaml",
        "authOptions: {mode: token}",
        "",
        "auth-mode",
        "authOptions: must be {mode: token}",
    ),
    ("cluster/slurm.sh", "RAY_AUTH_MODE=token srun", "RAY_AUTH_MODE= srun", "auth-mode", "every `ray start`"),
    (
        "cluster.yaml",
        "  ~/.ray: ./cluster/token\n",
        "",
        "auth-token",
        "file_mounts: must hold `~/.ray: ./cluster/token`, and head_setup_commands `ray get-auth-token --gen",
    ),
    (
        "cluster.yaml",
        "ray get-auth-token --generate",
        "true",
        "auth-token",
        "Without the token no node may join. cluster.yaml shows both lines.",
    ),
    # The head runs no trials, and is not a spot instance.
    (
        "cluster.yaml",
        "{CPU: 0, GPU: 0}",
        "{CPU: 2, GPU: 0}",
        "head-resources",
        "head.resources: the head's must be {CPU: 0, GPU: 0}, but got {'CPU': 2, 'GPU': 0}.",
    ),
    ("cluster.yaml", "{CPU: 0, GPU: 0}", "{}", "head-resources", "must be {CPU: 0, GPU: 0}, but got {}."),
    (
        "cluster/local.yaml",
        "--num-cpus=0",
        "",
        "head-resources",
        "head_start_ray_commands: the head must be started with `--num-cpus=0`, but got none.",
    ),
    ("cluster/local.yaml", "--num-gpus=0", "--num-gpus=1", "head-resources", "`--num-gpus=0`, but got 1."),
    ("cluster/kuberay.yaml", 'num-cpus: "0"', 'num-cpus: "2"', "head-resources", "but got '2'."),
    (
        "cluster.yaml",
        "InstanceType: m7i.large",
        "InstanceType: m7i.large\n      InstanceMarketOptions: {MarketType: spot}",
        "spot",
        "available_node_types.head.node_config: the head must not be a spot instance.",
    ),
    (
        "cluster/local.yaml",
        "--node-ip-address=CHANGE-head",
        "--node-ip-address=192.0.2.7",
        "head-address",
        "--node-ip-address must be provider.head_ip, but got 192.0.2.7 and CHANGE-head.",
    ),
    # The images.
    (
        "cluster.yaml",
        "image: rayproject/ray:2.60.0-py311-gpu",
        "image: rayproject/ray:2.59.0-py311-gpu",
        "image",
        "docker.image: the Ray of an image must be that of this environment, ",
    ),
    (
        "cluster.yaml",
        "image: rayproject/ray:2.60.0-py311-gpu",
        "image: rayproject/ray:2.60.0-py39-gpu",
        "image",
        "docker.image: the Python of an image must be that of this environment, ",
    ),
    (
        "cluster.yaml",
        "image: rayproject/ray:2.60.0-py311-gpu",
        "image: rayproject/ray:2.60.0-gpu",
        "image",
        "docker.image: an image's tag should have the version of its Python, but got rayproject/ray:2.60.0",
    ),
    (
        "cluster.yaml",
        "head_image: rayproject/ray:2.60.0-py311-cpu",
        "head_image: rayproject/ray:latest-cpu",
        "image",
        "docker.head_image: an image must be pinned to a version, the one of the Ray that is",
    ),
    ("cluster.yaml", "ray:2.60.0-py311-gpu", "ray", "image", "but got rayproject/ray."),
    ("cluster.yaml", "rayproject/ray:2.60.0-py311-gpu", "host:5000/ray", "image", "but got host:5000/ray."),
    (
        "cluster/kuberay.yaml",
        "tune_rescon:2.60.0-py311-gpu ",
        "tune_rescon:2.0.0-py311-gpu ",
        "image",
        "spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].image: the Ray of an image must be",
    ),
    (
        "cluster/kuberay.yaml",
        "rayVersion: 2.60.0",
        "rayVersion: 2.9.0",
        "image",
        "spec.rayClusterSpec.rayVersion: must be the Ray of this environment, ",
    ),
    ("cluster/kuberay.yaml", "minReplicas: 0", "minReplicas: 9", "workers", "must hold, but got 9 and 8."),
    # Storage.
    (
        "cluster.yaml",
        "TUNE_RESCON_STORAGE=s3://CHANGE-bucket/tune_rescon",
        "TUNE_RESCON_STORAGE=/home/ray/runs",
        "storage",
        "setup_commands[0]: the storage of a search on several nodes must be a URL, but got /home/ray/",
    ),
    (
        "cluster.yaml",
        "TUNE_RESCON_STORAGE=s3://CHANGE-bucket/tune_rescon",
        "TUNE_RESCON_STORAGE=file:///runs",
        "storage",
        "must be a URL, but got file:///runs.",
    ),
    (
        "cluster.yaml",
        "s3://CHANGE-bucket/tune_rescon",
        "s3://CHANGE-bucket",
        "storage",
        "must be a folder in a bucket, because MLflow's files are in ${TUNE_RESCON_STORAGE%/*}/mlflow, but",
    ),
    (
        "cluster.yaml",
        " TUNE_RESCON_STORAGE=s3://CHANGE-bucket/tune_rescon",
        "",
        "storage",
        "TUNE_RESCON_STORAGE must be set on every node, but got nothing. A node's disk goes with",
    ),
    ("cluster/kuberay.yaml", "value: s3://", "value: /mnt/", "storage", "must be a URL, but got /mnt/CHANGE"),
    ("cluster/sky.yaml", "STORAGE: s3://", "STORAGE: /mnt/", "storage", "must be a URL, but got /mnt/CHANGE"),
    (
        "cluster/sky.yaml",
        "TUNE_RESCON_STORAGE:",
        "STORAGE:",
        "storage",
        "must be set on every node, but got no",
    ),
    ("cluster/slurm.sh", "STORAGE=s3://", "STORAGE=/scratch/", "storage", "must be a URL, but got /scratch/"),
    # Mounts.
    (
        "cluster.yaml",
        "~/tune_rescon_source/README.md: ./README.md",
        "~/all: .",
        "mounts",
        "file_mounts.~/all: a whole checkout must not be mounted",
    ),
    # Requests that EC2 would reject.
    (
        "cluster.yaml",
        "IamInstanceProfile: {Name: CHANGE-worker}",
        "IamInstancProfile: {Name: CHANGE-worker}",
        "node-config",
        "unknown key 'IamInstancProfile' (did you mean 'IamInstanceProfile'?); known: AdditionalInfo, ",
    ),
    (
        "cluster.yaml",
        "VolumeSize: 150",
        "VolumSize: 150",
        "node-config",
        "BlockDeviceMappings[0].Ebs.VolumSize: unknown key 'VolumSize' (did you mean 'VolumeSize'?)",
    ),
    (
        "cluster.yaml",
        "VolumeSize: 150",
        "VolumeSize: '150'",
        "node-config",
        "BlockDeviceMappings[0].Ebs.VolumeSize: must be of type integer, but got '150'.",
    ),
    (
        "cluster.yaml",
        "SecurityGroupIds: [sg-CHANGE]",
        "SecurityGroupIds: sg-CHANGE",
        "node-config",
        "node_config.SecurityGroupIds: must be a list, but got 'sg-CHANGE'.",
    ),
    (
        "cluster.yaml",
        "MetadataOptions: {HttpTokens: required}",
        "MetadataOptions: required",
        "node-config",
        "node_config.MetadataOptions: must be a mapping, but got 'required'.",
    ),
]

WARNINGS: list[tuple[str, str, str, str, str]] = [
    (
        "cluster.yaml",
        "InstanceMarketOptions: {MarketType: spot}",
        "",
        "spot",
        "available_node_types.a10g.node_config: workers should be spot instances, which cost",
    ),
    (
        "cluster/gcp.yaml",
        "- preemptible: true",
        "- preemptible: false",
        "spot",
        "l4.node_config: workers should",
    ),
    (
        "cluster.yaml",
        "MarketType: spot",
        "MarketType: spott",
        "node-config",
        "MarketType: should be a value that botocore knows, but got 'spott'. Did you mean 'spot'?",
    ),
    (
        "cluster.yaml",
        "g5.2xlarge",
        "g5.2xlargge",
        "node-config",
        "but got 'g5.2xlargge'. Did you mean 'g5.2xlarge'?",
    ),
    (
        "cluster/kuberay.yaml",
        "CHANGE-registry/tune_rescon:2.60.0-py311-gpu ",
        "registry/mine:v7 ",
        "image",
        "an image's tag should have the version of its Ray, but got registry/mine:v7.",
    ),
    (
        "cluster/local.yaml",
        "$PATH RAY_AUTH_MODE=token",
        "$PATH",
        "auth-shells",
        "setup_commands: the shells of the head should have RAY_AUTH_MODE=token",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "rule", "text"), ERRORS)
def test_a_broken_rule_is_an_error(
    check_broken: CheckBroken, name: str, old: str, new: str, rule: str, text: str
) -> None:
    assert_error(check_broken(name, old, new), rule, text)


@pytest.mark.parametrize(("name", "old", "new", "rule", "text"), WARNINGS)
def test_a_questionable_choice_is_only_a_warning(
    check_broken: CheckBroken, name: str, old: str, new: str, rule: str, text: str
) -> None:
    assert_only_warning(check_broken(name, old, new), rule, text)


def test_sum_of_min_workers_must_not_exceed_max_workers(check_broken: CheckBroken) -> None:
    found = check_broken("cluster.yaml", "max_workers: 8 ", "max_workers: 1 ")
    assert not has_finding(found, "workers", "error", "")
    found = check_broken(
        "cluster.yaml", "min_workers: 0\n    max_workers: 8", "min_workers: 9\n    max_workers: 9"
    )
    assert has_finding(
        found, "workers", "error", "sum of all `min_workers` must be at most `max_workers`, but got 9"
    )


def test_a_finding_has_its_line(check_broken: CheckBroken) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    expected = text[: text.index("MarketType")].count("\n") + 1
    found = check_broken("cluster.yaml", "MarketType: spot", "MarketTyp: spot")
    # Node types that inherit the key by a YAML merge have no finding of their own.
    assert [finding.line for finding in found if finding.rule == "node-config"] == [expected]


def test_a_single_node_cluster_may_use_local_storage(check_broken: CheckBroken) -> None:
    found = check_broken("cluster.yaml", "s3://CHANGE-bucket/tune_rescon", "/runs")
    assert has_finding(found, "storage", "error", "/runs")
    found = check_broken("cluster.yaml", "max_workers: 8 ", "max_workers: 0 ")
    assert not has_finding(found, "storage", "error", "")


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("", "yaml", "must describe a cluster, but got nothing."),
        ("- a\n", "yaml", "must be keys and values, but got ['a']."),
        ("provider: aws\n", "ray-schema", "provider: must be of type object, but got 'aws'."),
        (
            "docker: 3\navailable_node_types: [1]\nsetup_commands: x\nfile_mounts: 7\n",
            "ray-schema",
            "file_mounts",
        ),
        ("apiVersion: ray.io/v1\nkind: RayCluster\n", "auth-mode", "spec.authOptions: must be {mode: token}"),
        ("apiVersion: ray.io/v1\nkind: RayCluster\nspec: [1]\n", "auth-mode", "must be {mode: token}"),
        ("run: x\nenvs: [a]\n", "storage", "TUNE_RESCON_STORAGE must be set on every node"),
        ("{x: 1}\n", "ray-schema", "cluster_name: is missing."),
        ("{x: 1}\n", "ray-schema", "provider: is missing."),
    ],
)
def test_a_file_of_another_kind_is_reported(tmp_path: Path, text: str, rule: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert has_finding(check_file(path), rule, "error", message), check_file(path)


def test_a_token_path_of_an_unknown_user_is_reported(check_broken: CheckBroken) -> None:
    found = check_broken("cluster.yaml", "~/.ray: ./cluster/token", "~/.ray/auth_token: ~no-such-user/token")
    assert has_finding(found, "auth-token", "warning", "names a file that is not there")


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    (finding,) = check_file(tmp_path / "missing.yaml")
    assert finding.rule == "readable"
    assert "No such file" in finding.text
