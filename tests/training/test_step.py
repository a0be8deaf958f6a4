from __future__ import annotations

import pytest
import torch

from tune_rescon.errors import NetworkError, ResourceError
from tune_rescon.training import build_step

pytestmark = pytest.mark.torch


def test_a_step_trains_at_the_presets_size() -> None:
    torch.manual_seed(0)
    step = build_step("cifar_attention56", batch_size=4, device="cpu")
    losses = [step() for _ in range(8)]
    assert all(loss.shape == () and not loss.requires_grad for loss in losses)
    assert torch.stack(losses).isfinite().all()
    assert min(losses[1:]) < losses[0]


def test_a_step_restores_global_torch_settings() -> None:
    step = build_step("cifar_attention56", batch_size=2, device="cpu")
    torch.set_float32_matmul_precision("high")
    try:
        step()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_unknown_preset_or_device_is_refused() -> None:
    with pytest.raises(NetworkError, match="unknown preset"):
        build_step("attention57", batch_size=2, device="cpu")
    with pytest.raises(ResourceError, match="unknown device"):
        build_step("cifar_attention56", batch_size=2, device="gpu")
