"""The layers of networks of several libraries: each block is one, whatever the network calls it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from tune_rescon.config import TrialConfig
from tune_rescon.training.layers import Trunk, layer_names
from tune_rescon.training.optim import parameter_groups

pytestmark = pytest.mark.torch


def timm_network(name: str) -> nn.Module:
    import timm

    with torch.device("meta"):
        network: nn.Module = timm.create_model(name)
    return network


def layers_of(network: nn.Module) -> list[str]:
    return list(dict.fromkeys(layer_names(dict(network.named_parameters())).values()))


def numbered(prefix: str, count: int, first: int = 0) -> list[str]:
    return [f"{prefix}{number}" for number in range(first, first + count)]


#: The layers of networks of timm by name. A stage's downsampling comes before its blocks.
LAYERS = {
    "convnext_atto": [
        *("stem", *numbered("stages.0.blocks.", 2)),
        *("stages.1", *numbered("stages.1.blocks.", 2)),
        *("stages.2", *numbered("stages.2.blocks.", 6)),
        *("stages.3", *numbered("stages.3.blocks.", 2)),
        "head",
    ],
    "swin_tiny_patch4_window7_224": [
        *("patch_embed", *numbered("layers.0.blocks.", 2)),
        *("layers.1", *numbered("layers.1.blocks.", 2)),
        *("layers.2", *numbered("layers.2.blocks.", 6)),
        *("layers.3", *numbered("layers.3.blocks.", 2)),
        "head",
    ],
    "efficientnet_b0": [
        *(
            "conv_stem",
            "bn1",
            *numbered("blocks.0.", 1),
            *numbered("blocks.1.", 2),
            *numbered("blocks.2.", 2),
        ),
        *(*numbered("blocks.3.", 3), *numbered("blocks.4.", 3), *numbered("blocks.5.", 4)),
        *(*numbered("blocks.6.", 1), "conv_head", "bn2", "classifier"),
    ],
    "regnetx_002": [
        *("stem", *numbered("s1.b", 1, 1), *numbered("s2.b", 1, 1), *numbered("s3.b", 4, 1)),
        *(*numbered("s4.b", 7, 1), "head"),
    ],
    "resnet18d": [
        *("conv1", "bn1", *numbered("layer1.", 2), *numbered("layer2.", 2), *numbered("layer3.", 2)),
        *(*numbered("layer4.", 2), "fc"),
    ],
    "vit_tiny_patch16_224": ["cls_token", "pos_embed", "patch_embed", *numbered("blocks.", 12), "head"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_block_of_a_network_of_timm_is_a_layer(name: str) -> None:
    assert layers_of(timm_network(name)) == LAYERS[name]


class Wrapped(nn.Module):
    """A network of timm between layers of one's own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(1, 3, 1, device="meta")
        self.model = network


def test_the_blocks_of_a_wrapped_network_are_layers() -> None:
    expected = LAYERS["convnext_atto"]
    only_wrapped = nn.ModuleDict({"net": timm_network("convnext_atto")})
    assert layers_of(only_wrapped) == [f"net.{layer}" for layer in expected]
    beside = Wrapped(timm_network("convnext_atto"))
    assert layers_of(beside) == ["adapter", *(f"model.{layer}" for layer in expected)]
    backbone = nn.Sequential(timm_network("convnext_atto"), nn.Linear(1000, 7, device="meta"))
    assert layers_of(backbone) == [*(f"0.{layer}" for layer in expected), "1"]


def test_the_classifier_of_a_network_beside_an_adapter_is_trained_alone() -> None:
    network = Wrapped(timm_network("resnet18"))
    Trunk(network).freeze(True)
    trained = [name for name, weight in network.named_parameters() if weight.requires_grad]
    assert trained == ["model.fc.weight", "model.fc.bias"]


def test_a_list_of_single_layers_is_divided_unless_it_is_the_stem_or_the_classifier() -> None:
    expected = {
        "tokens.0": "tokens",
        "tokens.1": "tokens",
        "stem.0.weight": "stem",
        "stem.1.weight": "stem",
        "features.0.weight": "features.0",
        "features.3.weight": "features.3",
        "classifier.0.weight": "classifier",
        "classifier.3.weight": "classifier",
    }
    assert layer_names(expected) == expected


def test_branches_of_a_block_are_no_layers() -> None:
    units = ("conv1", "bn1", "conv2", "bn2")
    names = [
        f"features.{block}.branches.{n}.{unit}.weight" for block in (0, 1) for n in (0, 1) for unit in units
    ]
    assert set(layer_names([*names, "fc.weight"]).values()) == {"features.0", "features.1", "fc"}


def test_layer_decay_lowers_the_rate_of_convnext_from_block_to_block() -> None:
    network = timm_network("convnext_atto")
    config = TrialConfig(layer_decay=0.5, learning_rate=1.0)
    rates = Counter(
        {
            group["lr"]: sum(weight.numel() for weight in group["params"])
            for group in parameter_groups(network, config)
        }
    )
    assert min(rates) == 0.5**16
    # Before, one rate was that of 91 per cent of the weights.
    assert max(rates.values()) < 0.3 * sum(weight.numel() for weight in network.parameters())
