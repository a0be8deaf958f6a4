"""torchmetrics without its plots, image and audio metrics, in a process that only trains.

Lightning imports torchmetrics. That imports what is installed of matplotlib, torchvision and SciPy, which no
training uses: 1.8 s of processor time in each process, of the 5.4 that torch and Lightning take in all
(benchmarks/NOTES.md). It has no switch for this, but asks one class which packages there are.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["import_lean_torchmetrics"]

#: What torchmetrics is told is not installed.
_UNUSED: Final = frozenset({"matplotlib", "scipy", "torchvision"})


def import_lean_torchmetrics() -> None:
    """Import torchmetrics as if matplotlib, SciPy and torchvision were not installed.

    Only for processes of this package's own, and before Lightning is imported: afterwards torchmetrics says
    of its plots and image metrics that they need a package. Does nothing if torchmetrics is imported already.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    is_met, is_there = imports.RequirementCache.__bool__, imports.package_available

    def is_met_and_used(self: imports.RequirementCache) -> bool:
        if self.requirement not in _UNUSED:
            return is_met(self)
        # Kept by the object, as its own answers are: a later question must be answered alike.
        self.available = False
        self.message = f"{self.requirement} is not used in this process"
        return False

    imports.RequirementCache.__bool__ = is_met_and_used  # type: ignore[method-assign]
    imports.package_available = lambda name: name not in _UNUSED and is_there(name)  # type: ignore[assignment]
    try:
        import torchmetrics  # noqa: F401
    finally:
        imports.RequirementCache.__bool__ = is_met  # type: ignore[method-assign]
        imports.package_available = is_there
