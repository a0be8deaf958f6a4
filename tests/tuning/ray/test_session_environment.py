"""The environment variables of Ray. No Ray is started."""

from __future__ import annotations

import os
import sys

import pytest

from tune_rescon.tuning.ray.session import prepare_environment


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]


@pytest.mark.usefixtures("_environment")
def test_a_local_ray_gets_its_own_token() -> None:
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_prestart_worker_first_driver"] == "0"  # noqa: SIM112  # Ray's own spelling


@pytest.mark.usefixtures("_environment")
def test_a_cluster_keeps_its_own_mode() -> None:
    prepare_environment(own_ray=False)
    assert "RAY_AUTH_MODE" not in os.environ
    assert "RAY_prestart_worker_first_driver" not in os.environ


@pytest.mark.usefixtures("_environment")
def test_variables_set_by_the_user_are_kept() -> None:
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="1")
    prepare_environment(own_ray=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
