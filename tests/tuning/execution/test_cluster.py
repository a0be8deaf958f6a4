"""How many trials fit, and what Ray reads from the environment. No Ray is started."""

from __future__ import annotations

import os
import sys

import pytest

from tune_rescon.errors import ResourceError
from tune_rescon.tuning.execution.cluster import fit_slots, prepare_environment


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
def test_slots(cpus: float, gpus: float, cpu: float, gpu: float, wanted: int | None, slots: int) -> None:
    assert fit_slots({"CPU": cpus, "GPU": gpus}, cpu=cpu, gpu=gpu, wanted=wanted) == slots


@pytest.mark.parametrize(
    ("resources", "said", "hint"),
    [
        ({"CPU": 2.0}, "a trial asks for 1 GPU", "resources_per_trial.gpu=0."),
        ({"CPU": 2.0, "GPU": 0.5}, "a trial asks for 1 GPU", "resources_per_trial.gpu=0.5"),
        ({"CPU": 1.0, "GPU": 1.0}, "a trial asks for 2 CPU", "resources_per_trial.cpu=1"),
    ],
)
def test_not_even_one_fits(resources: dict[str, float], said: str, hint: str) -> None:
    with pytest.raises(ResourceError) as caught:
        fit_slots(resources, cpu=2, gpu=1, wanted=None)
    assert said in str(caught.value)
    assert hint in str(caught.value)


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        os.environ.pop(name, None)


@pytest.mark.usefixtures("_environment")
def test_a_ray_of_its_own_gets_a_token_of_its_own() -> None:
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.usefixtures("_environment")
def test_a_cluster_keeps_its_own_mode() -> None:
    prepare_environment(own_ray=False)
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.usefixtures("_environment")
def test_what_the_user_has_set_stays() -> None:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="1")
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
