"""Every network of the table: its parameters and multiply-adds from numbers alone."""

from __future__ import annotations

import dataclasses

import pytest

from tune_rescon.config import TrialConfig
from tune_rescon.models import (
    NetworkSpec,
    count_params_and_macs,
    list_presets,
    minimum_image_size,
    resolve_network,
)
from tune_rescon.models.presets import LAYOUTS, PRESETS


def spec_of(preset: str, classes: int = 10) -> NetworkSpec:
    return resolve_network(TrialConfig(preset=preset), classes=classes, in_channels=3)


# Preset, image size, classes, parameters, multiply-adds: counted from the authors', ResCon's and the port's
# definitions; cifar_attention452 and the depths 128 and 164 at 224 pixels from this package's own numbers.
TABLE = [
    ("attention56", 224, 1000, 31_810_728, 6_270_836_736),
    ("attention56", 224, 10, 29_782_218, 6_268_809_216),
    ("attention56", 224, 100, 29_966_628, 6_268_993_536),
    ("attention92", 224, 1000, 52_466_344, 10_533_789_696),
    ("attention92", 320, 1000, 52_466_344, 21_495_398_400),
    ("attention92", 224, 10, 50_437_834, 10_531_762_176),
    ("attentionnext56", 224, 1000, 31_318_824, 6_419_106_816),
    ("port_attention_448", 448, 10, 50_782_410, 12_823_701_504),
    ("rescon_attention92_32", 32, 10, 12_170_730, 1_089_185_792),
    ("rescon_attention92_32", 32, 100, 12_262_980, 1_089_277_952),
    ("rescon_attention56_224", 224, 10, 29_782_218, 6_268_809_216),
    ("rescon_attention92_224", 224, 10, 50_437_834, 10_531_762_176),
    ("cifar_attention56", 32, 10, 1_030_362, 122_825_216),
    ("cifar_attention92", 32, 10, 1_841_242, 211_913_216),
    ("cifar_attention128", 32, 10, 2_652_122, 301_001_216),
    ("cifar_attention164", 32, 10, 3_463_002, 390_089_216),
    ("cifar_attention236", 32, 100, 5_107_892, 568_288_256),
    ("cifar_attention452", 32, 10, 10_181_210, 984_386_048),
]


@pytest.mark.parametrize(("preset", "image_size", "classes", "parameters", "macs"), TABLE)
def test_cost_is_exact(preset: str, image_size: int, classes: int, parameters: int, macs: int) -> None:
    cost = count_params_and_macs(dataclasses.replace(spec_of(preset, classes), image_size=image_size))
    assert (cost.parameters, cost.macs) == (parameters, macs)


@pytest.mark.parametrize("preset", list_presets())
def test_depth_matches_the_preset_name(preset: str) -> None:
    spec = spec_of(preset)
    assert spec.depth == PRESETS[preset].depth
    assert spec.depth % 3 == 2
    assert preset == "port_attention_448" or str(spec.depth) in preset


@pytest.mark.parametrize("preset", list_presets())
def test_the_default_image_size_is_at_least_the_minimum(preset: str) -> None:
    spec = spec_of(preset)
    assert spec.image_size == LAYOUTS[PRESETS[preset].layout].image_size
    assert minimum_image_size(spec) <= spec.image_size


@pytest.mark.parametrize(
    ("layout", "depths"),
    [
        ("imagenet", (3, 2, 1)),
        ("attentionnext", (3, 2, 1)),
        ("cifar", (3, 2, 1)),
        ("rescon", (2, 1, 0)),
        ("port448", (4, 3, 2, 1)),
    ],
)
def test_mask_depths_of_each_layout(layout: str, depths: tuple[int, ...]) -> None:
    assert LAYOUTS[layout].mask_depths() == depths


def test_presets_are_listed_in_order() -> None:
    assert list(list_presets()) == sorted(PRESETS)
    assert {preset.layout for preset in PRESETS.values()} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("preset", "least"),
    [
        ("cifar_attention56", 16),
        ("rescon_attention92_32", 16),
        ("attention56", 17),
        ("port_attention_448", 33),
    ],
)
def test_minimum_image_size(preset: str, least: int) -> None:
    assert minimum_image_size(spec_of(preset)) == least
