"""Clusters as files: what is wrong in one, before it costs money.

::

    check_file     every finding in a cluster file of Ray's launcher, a KubeRay manifest or a shell script
    Finding        one broken rule: its name, what to tell, its line

Nothing here starts Ray or asks a cloud. Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_rescon.lazy import lazy_names

if TYPE_CHECKING:
    from tune_rescon.launching.findings import Finding
    from tune_rescon.launching.lint import check_file

__all__ = ["Finding", "check_file"]

__getattr__ = lazy_names(__name__, {"Finding": "findings", "check_file": "lint"})
