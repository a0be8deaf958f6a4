"""Networks of timm and of user code: their description, applicable fields, cost, and errors."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from tests.own_networks import CALLS
from tune_rescon.config import TrialConfig
from tune_rescon.errors import ConfigError, NetworkError
from tune_rescon.models import (
    ExternalSpec,
    NetworkDescription,
    build_described,
    describe_network,
    description_from_dict,
    network_cost,
    resolve_network,
)
from tune_rescon.models.external import check_exists, check_external, pretrained_images

CUSTOM = "tests.own_networks"


def spec_of(network: str, *, classes: int = 10, in_channels: int = 3, **fields: Any) -> ExternalSpec:
    config = TrialConfig(network=network, **fields)
    spec = describe_network(config, classes=classes, in_channels=in_channels)
    assert isinstance(spec, ExternalSpec)
    return spec


def test_a_description_round_trips_through_json() -> None:
    specs: list[NetworkDescription] = [
        spec_of("timm/resnet18", image_size=64, drop_path=0.1),
        spec_of("clinic.networks:small", classes=3, in_channels=1),
        describe_network(TrialConfig(depth=92), classes=10, in_channels=3),
    ]
    assert [description_from_dict(json.loads(json.dumps(spec.to_dict()))) for spec in specs] == specs


def test_the_default_image_size_is_32() -> None:
    default = describe_network(TrialConfig(), classes=10, in_channels=3)
    assert spec_of("timm/resnet18").image_size == default.image_size == 32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet18"}, "network: must be timm/NAME, or MODULE:FUNCTION of your own code, but got"),
        ({"network": "timm/"}, "network: must be timm/NAME, or MODULE:FUNCTION"),
        ({"network": "my file.py:net"}, "network: must be timm/NAME, or MODULE:FUNCTION"),
        ({"network": "timm/resnet18", "depth": 92}, "depth: `depth` does not apply to the network timm/res"),
        ({"network": "timm/resnet18", "preset": "attention56"}, "preset: `preset` does not apply"),
        ({"network": "timm/resnet18", "width": 2.0}, "width: `width` does not apply"),
        ({"network": "timm/resnet18", "mask": "local"}, "mask: `mask` does not apply"),
        ({"network": "a:b", "drop_path": 0.1}, "drop_path: `drop_path` does not apply to the network a:b"),
        ({"network": "a:b", "pretrained": True}, "pretrained: `pretrained` does not apply"),
        ({"pretrained": True}, "pretrained: only a network of timm has pretrained weights"),
        (
            {"network": "timm/resnet18", "pretrained": True, "init_from": "a.ckpt"},
            "pretrained: weights begin as timm's pretrained ones or as those of a file, not both",
        ),
    ],
)
def test_fields_that_do_not_apply_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError) as raised:
        describe_network(TrialConfig(**fields), classes=10, in_channels=3)
    assert str(raised.value).startswith(message)


def test_resolve_network_refuses_an_external_network() -> None:
    with pytest.raises(NetworkError, match="network: a Residual Attention Network has no `network`"):
        resolve_network(TrialConfig(network="timm/resnet18"), classes=10, in_channels=3)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["test_resnet", "resnet18.a1_in1k", "test_vit", "convnext_atto"])
def test_parameter_counts_match_timm(name: str) -> None:
    import timm

    options: dict[str, Any] = {"img_size": 64} if name == "test_vit" else {}
    network = timm.create_model(name, num_classes=7, in_chans=1, **options)
    cost = network_cost(spec_of(f"timm/{name}", classes=7, in_channels=1, image_size=64))
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.torch
def test_multiply_adds_are_counted_for_one_image() -> None:
    # timm's results table has 1.82 GMACs for resnet18 at 224 pixels.
    cost = network_cost(spec_of("timm/resnet18", classes=1000, image_size=224))
    assert cost.macs == pytest.approx(1.82e9, rel=0.005)
    # A convolution of 9 x 3 weights at 16 x 16 positions for 16 channels, and a linear layer.
    assert network_cost(spec_of(f"{CUSTOM}:small")).macs == 16 * 16 * 16 * 27 + 64 * 10


@pytest.mark.torch
def test_multiply_adds_of_attention_are_counted_on_a_cpu_too() -> None:
    tokens, width = 4, 16
    attention = tokens * 4 * width**2 + 2 * tokens**2 * width
    macs = tokens * 3 * 64 * width + attention + tokens * 2 * 32 * width + 10 * width
    assert network_cost(spec_of(f"{CUSTOM}:attending", image_size=16)).macs == macs
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.torch
def test_multiply_adds_of_an_lstm_are_counted_on_a_cpu_too() -> None:
    # For each of 16 rows: four gates of 8 units, from 16 values in 3 channels and from the last state.
    macs = 16 * 4 * 8 * (3 * 16 + 8) + 8 * 10
    assert network_cost(spec_of(f"{CUSTOM}:recurrent", image_size=16)).macs == macs
    assert torch.backends.mkldnn.enabled


def test_a_network_in_eval_mode_is_trained_in_training_mode_and_a_frozen_norm_stays_frozen() -> None:
    assert all(part.training for part in build_described(spec_of(f"{CUSTOM}:evaluating")).modules())
    frozen = [
        part for part in build_described(spec_of(f"{CUSTOM}:with_frozen_norm")).modules() if not part.training
    ]
    assert [type(part) for part in frozen] == [torch.nn.BatchNorm1d]


@pytest.mark.torch
def test_costs_are_cached_and_draw_no_random_numbers() -> None:
    network_cost(spec_of(f"{CUSTOM}:small", image_size=48))
    calls, state = len(CALLS), torch.get_rng_state()
    network_cost(spec_of(f"{CUSTOM}:small", image_size=48))
    assert len(CALLS) == calls
    assert network_cost(spec_of(f"{CUSTOM}:reading", image_size=16)).parameters == 8 * (768 + 1) + 8 * 10 + 10
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [
        ("timm/resnet81", {}, r"network: must be a network of timm .* Did you mean resnet18 or"),
        (
            "timm/resnet18.nosuch",
            {},
            r"must name weights that timm knows.* They are resnet18\.a1_in1k",
        ),
        ("timm/vgg11", {"drop_path": 0.1}, "drop_path: timm's vgg11 has no dropped paths"),
        ("timm/inception_v3", {}, r"network timm/inception_v3: must map images \(2, 3, 32, 32\)"),
        ("nosuch:network", {}, "network: the module of a network must be importable"),
        (f"{CUSTOM}:nosuch", {}, r"network: the module tests\.own_networks must have this function"),
        # An installed module comes before the user's file of this name.
        ("colorsys:net", {}, r"must have this function, but got net\. The module is /.*/colorsys\.py\.$"),
        (f"{CUSTOM}:no_network", {}, r"the function must return a torch\.nn\.Module, but got int"),
        (
            f"{CUSTOM}:broken",
            {},
            r"called with num_classes=10, .*, but got ValueError: cannot do 10 classes\.$",
        ),
        (f"{CUSTOM}:wrong_logits", {}, r"to logits \(2, 10\), but got \(2, 7, 32, 32\)"),
    ],
)
def test_a_mistake_is_reported_in_one_paragraph(network: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((NetworkError, ConfigError), match=message) as raised:
        check_external(spec_of(network, **fields))
    assert "\n" not in str(raised.value)


@pytest.mark.torch
def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"pip install 'tune_rescon\[timm\]'"):
        check_exists(spec_of("timm/resnet18"), pretrained=False)


@pytest.mark.torch
def test_weights_that_cannot_be_loaded_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match="must name a network for which timm has pretrained weights"):
        check_exists(spec_of("timm/nf_regnet_b0"), pretrained=True)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to the hub\nRetrying")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(NetworkError) as raised:
        check_exists(spec_of("timm/resnet18"), pretrained=True)
    message = (
        "pretrained: timm must be able to load the pretrained weights of resnet18, but got OSError: no route"
    )
    assert str(raised.value).startswith(message)
    assert "init_from" in str(raised.value)
    check_exists(spec_of("timm/resnet18"), pretrained=False)


@pytest.mark.torch
def test_a_single_channel_gets_the_mean_over_the_colours() -> None:
    colour, grey = (
        pretrained_images(spec_of("timm/convnext_atto", in_channels=channels)) for channels in (3, 1)
    )
    assert colour.mean == (0.485, 0.456, 0.406)
    assert list(grey.mean) == pytest.approx([sum(colour.mean) / 3])
    assert colour.interpolation == "bicubic"


@pytest.mark.torch
def test_drop_path_sets_the_highest_drop_rate() -> None:
    from timm.layers.drop import DropPath

    network = build_described(spec_of("timm/resnet18", drop_path=0.3))
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.3)


@pytest.mark.torch
def test_drop_path_is_zero_by_default() -> None:
    """Some networks of timm have drop path by default."""
    from timm.layers.drop import DropPath

    def rates(drop_path: float) -> list[float]:
        network = build_described(spec_of("timm/fasternet_t1", drop_path=drop_path))
        return [one.drop_prob or 0.0 for one in network.modules() if isinstance(one, DropPath)]

    assert max(rates(0.0), default=0.0) == 0.0
    assert max(rates(0.3)) == pytest.approx(0.3)
