"""What every test shares: time limits by kind, and the reference data beside the checkout."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

#: Seconds a marked test may take; an unmarked one has pyproject.toml's `timeout`.
TIMEOUTS = {"torch": 120, "ray": 600}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, seconds in TIMEOUTS.items():
            if item.get_closest_marker(marker) and not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(seconds))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference facts, logits and images; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared reference folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A directory whose path leaves room for Ray's sockets (107 characters in all)."""
    with tempfile.TemporaryDirectory(prefix="tr-", ignore_cleanup_errors=True) as path:
        yield Path(path)
