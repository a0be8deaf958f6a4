"""The shipped presets as test parameters."""

from __future__ import annotations

from typing import Any

import pytest

from tune_rescon.models import list_presets

#: Deep presets repeat the blocks of shallower ones, and take seconds each.
DEEP = {"attention128", "attention164", "cifar_attention164", "cifar_attention236", "cifar_attention452"}


def preset_parameters() -> list[Any]:
    """Return every preset; deep ones are marked as nightly."""
    assert set(list_presets()) > DEEP
    return [
        pytest.param(name, marks=[pytest.mark.nightly] if name in DEEP else []) for name in list_presets()
    ]
