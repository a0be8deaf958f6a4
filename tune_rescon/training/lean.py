"""Import torchmetrics without its plots, image and audio metrics in a process that only trains.

Lightning imports torchmetrics. torchmetrics imports matplotlib, torchvision and SciPy if they are installed,
and training uses none of them. These imports cost 1.8 s of processor time in each process, out of 5.4 s for
all of torch and Lightning (benchmarks/notes/driver_and_turnover.md). torchmetrics has no switch for this, but
it finds out through a single class which packages are installed.
"""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["import_lean_torchmetrics"]

#: Packages that are reported to torchmetrics as not installed.
_UNUSED: Final = frozenset({"matplotlib", "scipy", "torchvision"})


def import_lean_torchmetrics() -> None:
    """Import torchmetrics as if matplotlib, SciPy and torchvision were not installed.

    Call it only in this package's own processes, and before Lightning is imported. Afterwards torchmetrics'
    plots and image metrics report that a package is missing. If torchmetrics is already imported, the call
    does nothing.
    """
    if "torchmetrics" in sys.modules:
        return
    from lightning_utilities.core import imports

    is_met, is_there = imports.RequirementCache.__bool__, imports.package_available

    def is_met_and_used(self: imports.RequirementCache) -> bool:
        if self.requirement not in _UNUSED:
            return is_met(self)
        # Stored in the object, as by the original method, so that later calls return the same result.
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
