"""What a search ran with: versions, commit, devices."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tune_rescon import __version__

__all__ = ["provenance"]

_PACKAGES: Final = ("torch", "torchvision", "ray", "optuna", "pytorch-lightning", "mlflow")

#: Ray's name for the kinds of accelerator it has found, as resources.
_ACCELERATOR: Final = "accelerator_type:"


def provenance(resources: Mapping[str, float]) -> dict[str, str]:
    """Tags of a search's run; ``resources`` are what Ray has, by its names."""
    return {
        "tune_rescon.version": __version__,
        "tune_rescon.device": devices(resources),
        "version.python": platform.python_version(),
        **{f"version.{name}": version(name) for name in _PACKAGES},
        **_commit(Path(__file__).parent),
    }


def devices(resources: Mapping[str, float]) -> str:
    """What trials run on, in words.

    >>> devices({"CPU": 16.0, "GPU": 2.0, "accelerator_type:H100": 1.0})
    '2 GPU (H100), 16 CPU'
    >>> devices({"CPU": 2.0})
    '2 CPU'
    """
    kinds = sorted(name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
    gpus = f"{resources.get('GPU', 0):g} GPU ({', '.join(kinds)}), " if kinds else ""
    return f"{gpus}{resources.get('CPU', 0):g} CPU"


def _commit(folder: Path) -> dict[str, str]:
    """The commit this package runs from, if it runs from a checkout, and whether files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    return {"mlflow.source.git.commit": commit, "tune_rescon.dirty": str(bool(changed)).lower()}


def _git(folder: Path, *arguments: str) -> str:
    """What git says; empty where it is not installed, or this is no checkout of its."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=10
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
