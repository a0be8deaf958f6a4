"""The number of trials that fit on a cluster, now and after autoscaling, and the key of a trial's memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tune_rescon.config import TrialConfig, field_names
from tune_rescon.errors import ResourceError
from tune_rescon.spaces import load_space
from tune_rescon.tuning.resources import (
    Nodes,
    autoscaler_limits,
    concurrent_trials,
    memory_signature,
    nodes_of,
)

ONE_CPU = {"CPU": 2.0, "GPU": 1.0}
HEAD = Nodes(count=1, resources={"CPU": 0.0, "GPU": 0.0})

CLUSTER = """
max_workers: 10
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0, GPU: 0}, node_config: {}}
  small: {max_workers: 8, resources: {CPU: 8, GPU: 1, "accelerator_type:A10G": 1}, node_config: {}}
  large: {resources: {CPU: 96, GPU: 8, "accelerator_type:A100": 1}, node_config: {}}
"""


@pytest.mark.parametrize(
    ("cpus", "gpus", "cpu", "gpu", "wanted", "slots"),
    [
        (2, 0, 1, 0, None, 2),
        (2, 0, 1, 0, 1, 1),
        (2, 0, 1, 0, 9, 2),
        (8, 1, 4, 1, None, 1),
        (64, 8, 4, 1, None, 8),
        (16, 8, 4, 1, None, 4),
        (8, 1, 1, 0.5, None, 2),
        (8, 1, 1, 0.1, None, 8),
        (16, 1, 1, 0.1, None, 10),
        (16, 1, 1, 1 / 3, None, 3),
    ],
)
def test_concurrent_trials_are_limited_by_cpus_gpus_and_the_request(
    cpus: float, gpus: float, cpu: float, gpu: float, wanted: int | None, slots: int
) -> None:
    machine = Nodes(count=1, resources={"CPU": cpus, "GPU": gpus})
    assert concurrent_trials([machine], [], {"CPU": cpu, "GPU": gpu}, wanted) == slots


@pytest.mark.parametrize(
    ("resources", "message", "hint"),
    [
        ({"CPU": 2.0}, "a trial asks for 1 GPU", "resources_per_trial.gpu=0."),
        ({"CPU": 2.0, "GPU": 0.5}, "a trial asks for 1 GPU", "resources_per_trial.gpu=0.5"),
        ({"CPU": 1.0, "GPU": 1.0}, "a trial asks for 2 CPU", "resources_per_trial.cpu=1"),
    ],
)
def test_a_trial_that_fits_on_no_machine_is_refused(
    resources: dict[str, float], message: str, hint: str
) -> None:
    with pytest.raises(ResourceError) as error:
        concurrent_trials([Nodes(count=1, resources=resources)], [], {"CPU": 2, "GPU": 1}, None)
    assert message in str(error.value)
    assert hint in str(error.value)


def test_a_trial_runs_on_one_machine() -> None:
    three_nodes = Nodes(count=3, resources={"CPU": 3.0, "GPU": 1.0})
    assert concurrent_trials([HEAD, three_nodes], [], {"CPU": 2.0, "GPU": 0.0}, None) == 3
    separate = [Nodes(count=1, resources={"CPU": 8.0}), Nodes(count=1, resources={"CPU": 1.0, "GPU": 1.0})]
    with pytest.raises(
        ResourceError,
        match=r"one machine must have all that a trial asks for \(.*1 GPU\), but got only some of it",
    ):
        concurrent_trials(separate, [], ONE_CPU, None)


@pytest.fixture
def bootstrap(tmp_path: Path) -> Path:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(CLUSTER)
    return path


def test_a_cluster_with_only_its_head_counts_the_autoscaler_limits(bootstrap: Path) -> None:
    later = autoscaler_limits(bootstrap)
    assert concurrent_trials([HEAD], later, ONE_CPU, None) == 8 + 10 * 8
    assert concurrent_trials([HEAD], later, {**ONE_CPU, "accelerator_type:A10G": 0.001}, None) == 8
    assert concurrent_trials([HEAD], later, ONE_CPU, 5) == 5


def test_a_trial_larger_than_any_future_machine_is_refused(bootstrap: Path) -> None:
    later = autoscaler_limits(bootstrap)
    with pytest.raises(
        ResourceError, match="a trial asks for 16 GPU, which must not be more than a machine has"
    ):
        concurrent_trials([HEAD], later, {"CPU": 1.0, "GPU": 16.0}, None)
    with pytest.raises(ResourceError, match="accelerator_type:H100, but got accelerator_type:A100, accele"):
        concurrent_trials([HEAD], later, {**ONE_CPU, "accelerator_type:H100": 0.001}, None)


def test_a_machine_without_rays_cluster_file_does_not_grow(tmp_path: Path) -> None:
    assert autoscaler_limits(tmp_path / "none.yaml") == ()


def test_on_kubernetes_the_growth_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    later = autoscaler_limits(tmp_path / "none.yaml")
    assert concurrent_trials([HEAD], later, ONE_CPU, 4) == 4
    assert concurrent_trials([HEAD, Nodes(count=2, resources=ONE_CPU)], later, ONE_CPU, None) == 2
    with pytest.raises(ResourceError, match="--concurrent N"):
        concurrent_trials([HEAD], later, ONE_CPU, None)


def test_dead_nodes_are_not_counted() -> None:
    nodes = [{"Alive": True, "Resources": ONE_CPU}, {"Alive": False, "Resources": ONE_CPU}]
    assert concurrent_trials(nodes_of(nodes), [], ONE_CPU, None) == 1


def test_a_space_can_name_the_kind_of_gpu() -> None:
    space = load_space("digits", ["resources_per_trial={cpu: 4, gpu: 1, accelerator: L4}"])
    assert space.resources_per_trial.by_name() == {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L4": 0.001}
    assert space.resources_per_trial.device == "L4"


@pytest.mark.parametrize(
    ("machines", "workers", "wanted", "slots"),
    [
        ([{"CPU": 8, "GPU": 4}], 2, None, 2),
        ([{"CPU": 8, "GPU": 1}] * 3, 2, None, 1),
        ([{"CPU": 8, "GPU": 1}] * 4, 2, 1, 1),
        ([{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 1}], 4, None, 1),
    ],
)
def test_a_trials_workers_may_be_on_different_machines(
    machines: list[dict[str, float]], workers: int, wanted: int | None, slots: int
) -> None:
    now = [Nodes(count=1, resources=resources) for resources in machines]
    assert concurrent_trials(now, [], ONE_CPU, wanted, workers=workers) == slots


def test_more_workers_than_the_machines_can_run_are_refused() -> None:
    machine = Nodes(count=1, resources={"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(ResourceError) as error:
        concurrent_trials([machine], [], ONE_CPU, None, workers=3)
    assert "all 3 workers of a trial" in str(error.value)
    assert "--set resources_per_trial.workers=2" in str(error.value)


TRIAL = TrialConfig(batch_size=64)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 92},
        {"network": "timm/resnet18"},
        {"width": 0.5},
        {"image_size": 64},
        {"dataset": "cifar100"},
        {"optimizer": "adamw"},
        {"ema_decay": 0.99},
        {"batch_size": 12},
        {"precision": "bf16"},
    ],
)
def test_trials_that_need_different_memory_have_different_keys(change: dict[str, Any]) -> None:
    assert memory_signature(dataclasses.replace(TRIAL, **change)) != memory_signature(TRIAL)


@pytest.mark.parametrize(
    "change",
    [{"learning_rate": 0.2}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}, {"batch_size": 128}],
)
def test_trials_that_need_the_same_memory_have_the_same_key(change: dict[str, Any]) -> None:
    assert memory_signature(dataclasses.replace(TRIAL, **change)) == memory_signature(TRIAL)


#: Fields that do not change a trial's memory. Any other field of TrialConfig must change the key.
NO_MEMORY = {
    *("learning_rate", "momentum", "nesterov", "weight_decay", "schedule", "warmup_epochs", "decay_fraction"),
    *("step_fractions", "label_smoothing", "gradient_clip", "drop_path", "precise_bn_batches", "normalize"),
    *("crop_padding", "flip", "augment", "mixup", "cutmix", "init_from", "pretrained"),
    *("class_weights", "class_sampling"),
    *("layer_decay", "classifier_lr_mult", "freeze_epochs", "cycles", "patience"),
    *("crop_scale", "crop_ratio", "rotation", "color_jitter", "random_erasing"),
}


@pytest.mark.parametrize("name", field_names())
def test_every_field_changes_the_memory_key_unless_listed(name: str) -> None:
    changed_trial = SimpleNamespace(**{field: getattr(TRIAL, field) for field in field_names()})
    setattr(
        changed_trial, name, 12 if name == "batch_size" else 0.5 if name == "ema_decay" else "another value"
    )
    has_other_key = memory_signature(cast(TrialConfig, changed_trial)) != memory_signature(TRIAL)
    assert has_other_key is (name not in NO_MEMORY)
