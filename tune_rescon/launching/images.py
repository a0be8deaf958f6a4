"""Container images: the Ray and the Python in them must be those of this environment.

Ray refuses a driver whose version or Python differs, and does so when the cluster is up and paid for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from tune_rescon.errors import explain
from tune_rescon.launching.findings import Severity

__all__ = ["check_image", "our_python"]

_OFFICIAL: Final = "rayproject/"


def our_python() -> str:
    """This interpreter as an image's tag says it, such as ``py311``."""
    return f"py{sys.version_info.major}{sys.version_info.minor}"


def check_image(image: str, complain: Callable[[str, Severity], None], *, where: str) -> None:
    """Check an image's name; nothing is pulled."""
    _, _, last = image.partition("@")[0].rpartition("/")
    tag = last.partition(":")[2]
    ours, ray = our_python(), version("ray")
    if re.match(r"(latest|nightly)?(-|$)", tag):
        rule = "an image must be pinned to a version, the one of the Ray that is installed here"
        complain(explain(rule, got=image, where=where, hint=f"That is {ray}-{ours}."), "error")
        return
    # An image of one's own may be named as one likes.
    doubt: Severity = "error" if image.startswith(_OFFICIAL) else "warning"
    for what, wanted, found in (
        ("Ray", ray, re.search(r"\d+\.\d+\.\d+(rc\d+|\.post\d+)?", tag)),
        ("Python", ours, re.search(r"py\d+", tag)),
    ):
        if found is None:
            rule = f"an image's tag should say which {what} is in it"
            complain(explain(rule, got=image, where=where, hint=f"It must be {wanted}."), doubt)
        elif found[0] != wanted:
            rule = f"the {what} of an image must be that of this environment, {wanted}"
            complain(explain(rule, got=found[0], where=where), "error")
