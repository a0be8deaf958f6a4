"""The shipped presets as parameters of a test."""

from __future__ import annotations

from typing import Any

import pytest

from tune_rescon.models import list_presets

#: They repeat the blocks of shallower presets, and take seconds each.
DEEP = {"attention128", "attention164", "cifar_attention164", "cifar_attention236", "cifar_attention452"}


def preset_parameters() -> list[Any]:
    """Every preset; the deep ones in the nightly tests."""
    assert set(list_presets()) > DEEP
    return [
        pytest.param(name, marks=[pytest.mark.nightly] if name in DEEP else []) for name in list_presets()
    ]
