"""From a trial's configuration to a spec: defaults, combinations, and the errors for the others."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_rescon.config import TrialConfig
from tune_rescon.errors import NetworkError
from tune_rescon.models import (
    NetworkSpec,
    count_params_and_macs,
    iter_layers,
    minimum_image_size,
    resolve_network,
)
from tune_rescon.models.presets import LAYOUTS, PRESETS


def resolve(**values: Any) -> NetworkSpec:
    return resolve_network(TrialConfig(**values), classes=10, in_channels=3)


@pytest.mark.parametrize(
    ("image_size", "layout"),
    [(None, "cifar"), (16, "cifar"), (64, "cifar"), (65, "imagenet"), (224, "imagenet")],
)
def test_auto_layout_follows_the_image_size(image_size: int | None, layout: str) -> None:
    assert resolve(image_size=image_size).layout == layout


@pytest.mark.parametrize(
    "preset", [name for name, preset in PRESETS.items() if preset.layout != "attentionnext"]
)
def test_a_preset_equals_its_layout_and_depth(preset: str) -> None:
    numbers = PRESETS[preset]
    by_hand = resolve(layout=numbers.layout, depth=numbers.depth, added_reference=numbers.added_reference)
    assert resolve(preset=preset) == by_hand


def test_a_preset_can_be_varied_by_other_fields() -> None:
    plain = resolve(preset="attention56")
    varied = resolve(
        preset="attention56", image_size=96, attention="spatial", attention_learning="nal", width=0.5
    )
    assert (varied.image_size, varied.attention, varied.attention_learning) == (96, "spatial", "nal")
    assert [stage.channels for stage in varied.stages] == [128, 256, 512]
    assert [s.mask_poolings for s in varied.stages] == [s.mask_poolings for s in plain.stages]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depth": 156}, ["2 + 3 x units", "56, 92, 128, 164, 236, 452", "got 156", "nearest is 164"]),
        ({"depth": 156, "image_size": 224}, ["56, 92, 128, 164", "nearest is 164"]),
        ({"depth": 110}, ["has the depths", "nearest is 92"]),
        ({"layout": "port448"}, ["depths 107", "got 56"]),
        ({"preset": "attention65"}, ["unknown preset", "did you mean 'attention56'", "cifar_attention452"]),
        (
            {"preset": "attention92", "depth": 128},
            ["fixes the depth", "attention92 is depth 92", "got depth 128"],
        ),
        (
            {"preset": "attention92", "layout": "cifar"},
            ["fixes the layout", "imagenet", "got layout 'cifar'"],
        ),
        ({"preset": "attention56", "image_size": 16}, ["at least 17 pixels", "got 16"]),
        ({"layout": "port448", "depth": 107, "image_size": 32}, ["at least 33 pixels", "got 32"]),
    ],
)
def test_an_invalid_combination_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(NetworkError) as caught:
        resolve(**values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("classes", "in_channels", "name"), [(0, 3, "classes"), (10, 0, "in_channels")])
def test_zero_classes_or_channels_are_refused(classes: int, in_channels: int, name: str) -> None:
    with pytest.raises(NetworkError, match=f"{name}: must be a whole number of at least 1"):
        resolve_network(TrialConfig(), classes=classes, in_channels=in_channels)


def test_a_valid_but_unavailable_depth_is_not_called_impossible() -> None:
    with pytest.raises(NetworkError) as caught:
        resolve(depth=200)
    assert "2 mod 3" not in str(caught.value)


@st.composite
def configs(draw: st.DrawFn) -> TrialConfig:
    layout = draw(st.sampled_from([name for name in LAYOUTS if name != "attentionnext"]))
    return TrialConfig(
        layout=layout,
        depth=draw(st.sampled_from(sorted(LAYOUTS[layout].by_depth()))),
        width=draw(st.floats(0.1, 2.0)),
        image_size=draw(st.none() | st.integers(33, 512)),
        attention=draw(st.sampled_from(["mixed", "channel", "spatial"])),
        attention_learning=draw(st.sampled_from(["arl", "nal"])),
        mask=draw(st.sampled_from(["encoder_decoder", "local"])),
        added_reference=draw(st.booleans()),
        drop_path=draw(st.floats(0.0, 0.9)),
    )


@given(configs())
def test_spec_round_trips_through_json(config: TrialConfig) -> None:
    spec = resolve_network(config, classes=7, in_channels=2)
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(configs())
def test_parameters_do_not_depend_on_the_image_size(config: TrialConfig) -> None:
    spec = resolve_network(config, classes=7, in_channels=2)
    smaller, larger = (count_params_and_macs(dataclasses.replace(spec, image_size=side)) for side in (64, 65))
    assert smaller.parameters == larger.parameters
    assert smaller.macs <= larger.macs


@given(configs())
def test_channels_are_divisible_by_groups(config: TrialConfig) -> None:
    for layer in iter_layers(resolve_network(config, classes=7, in_channels=2)):
        assert min(layer.in_channels, layer.out_channels, layer.side) >= 1
        assert layer.in_channels % layer.groups == 0
        assert layer.out_channels % layer.groups == 0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_local_mask_has_the_same_parameters_and_no_pooling(preset: str) -> None:
    encoder_decoder, local = resolve(preset=preset), resolve(preset=preset, mask="local")
    assert count_params_and_macs(local).parameters == count_params_and_macs(encoder_decoder).parameters
    assert count_params_and_macs(local).macs > count_params_and_macs(encoder_decoder).macs
    assert minimum_image_size(local) == 16


@pytest.mark.parametrize("width", [0.25, 0.5, 2.0])
def test_width_keeps_resnext_groups_whole(width: float) -> None:
    spec = resolve(preset="attentionnext56", width=width)
    assert all(stage.channels % 64 == 0 for stage in spec.stages)


@pytest.mark.parametrize(
    ("change", "word"), [({"drop_path": None}, "missing drop_path"), ({"colour": 1}, "unknown colour")]
)
def test_an_invalid_spec_names_the_field(change: dict[str, Any], word: str) -> None:
    values = {**resolve().to_dict(), **change}
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(NetworkError, match=word):
        NetworkSpec.from_dict(values)


def test_parameter_counts_need_no_torch() -> None:
    code = (
        "import sys; from tune_rescon.config import TrialConfig; from tune_rescon import models;"
        "spec = models.resolve_network(TrialConfig(), classes=10, in_channels=3);"
        "print(models.count_params_and_macs(spec).parameters, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1030362", "False"]
