"""A browser that all tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, browser, find_browser


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium), nor named by $CHROMIUM")
    with browser() as started:
        yield started
