"""The attention module's formulas, and its shape at any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.models import resolve_network
from tune_rescon.models.network import ATTENTIONS, NEVER_DROPPED, AttentionModule, Mask, enlarged

CHANNELS = 64


def module_of(**values: Any) -> AttentionModule:
    """A module of the paper's first CIFAR stage: 64 channels, three poolings."""
    torch.manual_seed(0)
    spec = resolve_network(TrialConfig(**values), classes=10, in_channels=3)
    return AttentionModule(spec, spec.stages[0], NEVER_DROPPED)


def features(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, CHANNELS, height, width, generator=generator)


def test_channel_attention_has_unit_norm_at_each_position() -> None:
    norms_BHW = ATTENTIONS["channel"](features(5, 3)).norm(dim=1)
    torch.testing.assert_close(norms_BHW, torch.ones(2, 5, 3))


def test_spatial_attention_standardises_each_map() -> None:
    logits_BCHW = ATTENTIONS["spatial"](3 * features(8, 8) + 7).logit()
    torch.testing.assert_close(logits_BCHW.mean(dim=(2, 3)), torch.zeros(2, CHANNELS), atol=1e-4, rtol=0)
    deviations_BC = logits_BCHW.std(dim=(2, 3), correction=0)
    torch.testing.assert_close(deviations_BC, torch.ones(2, CHANNELS), atol=1e-3, rtol=0)


@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
@pytest.mark.parametrize(
    "x_BCHW", [torch.zeros(2, 4, 1, 1), torch.full((2, 4, 3, 3), 5.0)], ids=["1x1", "flat"]
)
def test_maps_without_variance_stay_finite(attention: str, x_BCHW: Tensor) -> None:
    x_BCHW = x_BCHW.clone().requires_grad_()
    y_BCHW = ATTENTIONS[attention](x_BCHW)
    torch.autograd.backward(y_BCHW.sum())
    assert torch.isfinite(y_BCHW).all()
    assert x_BCHW.grad is not None
    assert torch.isfinite(x_BCHW.grad).all()


@pytest.mark.torch
@given(height=st.integers(1, 24), width=st.integers(1, 24))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("mask", ["encoder_decoder", "local"])
def test_shape_is_kept_at_any_size(mask: str, height: int, width: int) -> None:
    module = module_of(mask=mask)
    assert module(features(height, width)).shape == (2, CHANNELS, height, width)


@pytest.mark.torch
@pytest.mark.parametrize("attention", sorted(ATTENTIONS))
@pytest.mark.parametrize("learning", ["arl", "nal"])
def test_mask_and_trunk_are_combined_as_in_the_paper(learning: str, attention: str) -> None:
    module = module_of(attention_learning=learning, attention=attention)
    seen: dict[str, Tensor] = {}
    module.trunk.register_forward_hook(lambda _, __, output: seen.update(trunk=output))
    module.mask.register_forward_hook(lambda _, __, output: seen.update(mask=output))
    module.post.register_forward_hook(lambda _, args, __: seen.update(combined=args[0]))
    module(features(8, 8))
    weight_BCHW = 1 + seen["mask"] if learning == "arl" else seen["mask"]
    torch.testing.assert_close(seen["combined"], weight_BCHW * seen["trunk"])


def masked(mask: Mask, *, trunk_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        mask_BCHW: Tensor = mask.eval()(features(9, 9), trunk_BCHW)
    return mask_BCHW


@pytest.mark.torch
@pytest.mark.parametrize(("added_reference", "same"), [(False, True), (True, False)])
def test_trunk_enters_the_mask_only_as_added_reference(added_reference: bool, same: bool) -> None:
    mask = module_of(added_reference=added_reference).mask
    zeros, ones = torch.zeros(2, CHANNELS, 9, 9), torch.ones(2, CHANNELS, 9, 9)
    assert torch.equal(masked(mask, trunk_BCHW=zeros), masked(mask, trunk_BCHW=ones)) is same


@pytest.mark.torch
def test_added_reference_changes_the_output_but_not_the_parameters() -> None:
    plain, added = module_of().mask, module_of(added_reference=True).mask
    added.load_state_dict(plain.state_dict())
    zeros = torch.zeros(2, CHANNELS, 9, 9)  # nothing added at full resolution: the inner levels must differ
    assert not torch.allclose(masked(plain, trunk_BCHW=zeros), masked(added, trunk_BCHW=zeros))


@pytest.mark.torch
def test_local_mask_never_pools() -> None:
    mask = module_of(mask="local").mask
    assert len(mask.middle) == 8
    assert not [*mask.down, *mask.skip, *mask.up]
    pooled: list[Tensor] = []
    mask.pool.register_forward_hook(lambda _, __, output: pooled.append(output))
    masked(mask, trunk_BCHW=torch.zeros(2, CHANNELS, 9, 9))
    assert pooled == []


def test_a_mask_is_upsampled_in_bf16_under_autocast() -> None:
    """Autocast alone would do it, and all that follows up to the next convolution, in fp32."""
    small_BCHW = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected_BCHW = enlarged(small_BCHW, torch.empty(2, 4, 5, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BCHW = enlarged(small_BCHW.bfloat16(), torch.empty(2, 4, 5, 5))
    assert found_BCHW.dtype == torch.bfloat16
    torch.testing.assert_close(found_BCHW.float(), expected_BCHW, rtol=2e-2, atol=2e-2)
