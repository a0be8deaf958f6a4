"""Networks in TorchScript and torch.fx give the same outputs."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from tests.models.one_module import one_module_spec
from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError
from tune_rescon.models import ResidualAttentionNetwork, build_from_spec

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:DeprecationWarning"),
    # A warning about torch's own GraphModule.
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't:UserWarning"),
]

#: One configuration for each branch that tracing could lose.
NETWORKS: list[dict[str, Any]] = [
    {"drop_path": 0.5},
    {"attention": "channel", "added_reference": True},
    {"attention": "spatial", "attention_learning": "nal", "mask": "local"},
    {"preset": "attentionnext56", "image_size": 32},
]
networks = pytest.mark.parametrize("fields", NETWORKS, ids=lambda fields: "-".join(map(str, fields.values())))


def build(fields: dict[str, Any]) -> ResidualAttentionNetwork:
    torch.manual_seed(0)
    config = TrialConfig(**({"width": 0.125} | fields))
    return build_from_spec(one_module_spec(config, classes=3, in_channels=2))


def output(network: Any, side: int) -> torch.Tensor:
    images_BCHW = torch.rand(3, 2, side, side + 2, generator=torch.Generator().manual_seed(side))
    torch.manual_seed(1)
    logits_BK: torch.Tensor = network(images_BCHW)
    return logits_BK


@networks
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_scripted_and_traced_networks_match_the_original(fields: dict[str, Any], training: bool) -> None:
    network = build(fields).train(training)
    for make in (torch.jit.script, torch.fx.symbolic_trace):
        plain, other = copy.deepcopy(network), make(copy.deepcopy(network))
        for side in (33, 16):
            torch.testing.assert_close(output(other, side), output(plain, side))
        torch.testing.assert_close(other.state_dict(), plain.state_dict())


def test_a_scripted_network_can_be_saved_and_a_traced_one_scripted() -> None:
    network = build({}).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(network), file)
    file.seek(0)
    loaded: Any = torch.jit.load(file)
    torch.testing.assert_close(output(loaded, 20), output(network, 20))
    scripted = torch.jit.script(torch.fx.symbolic_trace(network))
    torch.testing.assert_close(output(scripted, 20), output(network, 20))


def test_scripted_and_traced_networks_check_the_image_size() -> None:
    network = build({}).eval()
    with pytest.raises(NetworkError, match="at least 16 pixels a side, but got 12x14"):
        output(torch.fx.symbolic_trace(network), 12)
    with pytest.raises(torch.jit.Error, match="images must be at least 16 pixels a side"):
        output(torch.jit.script(network), 12)
