"""What a run notes about itself in the record, so that the record alone makes a report.

Attributes of the study: ``datasets`` (what the networks' costs follow from, which a machine without the
images cannot find out), ``dataset_account`` (what a listing of each folder found and left out),
``tracking_uri``, and ``outcome``, which is empty while a run lasts.
"""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tune_rescon import __version__
from tune_rescon.data import Account, DatasetInfo
from tune_rescon.passwords import without_password
from tune_rescon.tuning.result import SearchState
from tune_rescon.tuning.study import StudyRecord

__all__ = [
    "RunNotes",
    "note_outcome",
    "note_run",
    "provenance",
    "read_notes",
]


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


#: Facts that the record of a search has elsewhere, or not at all.
_LATER_FACTS: Final = ("account", "stored_side", "stored_images", "validation_tests")


@dataclass(frozen=True, kw_only=True)
class RunNotes:
    """What was noted last; less of a record that an older version wrote."""

    datasets: Mapping[str, DatasetInfo] = field(default_factory=dict)
    tracking_uri: str | None = None
    """None: the storage's own store. The record is read by many, so it has no password."""
    outcome: SearchState | None = None
    """How the last run ended; None: it lasts, or was killed."""
    failure: str | None = None


def note_run(record: StudyRecord, datasets: Mapping[str, DatasetInfo], tracking_uri: str | None) -> None:
    """A run begins."""
    record.set_attribute("datasets", {name: _plain(facts) for name, facts in datasets.items()})
    accounts = {name: facts.account.to_json() for name, facts in datasets.items() if facts.account}
    record.set_attribute("dataset_account", accounts)
    record.set_attribute("tracking_uri", None if tracking_uri is None else without_password(tracking_uri))
    record.set_attribute("outcome", None)


def note_outcome(record: StudyRecord, state: SearchState, failure: str | None) -> None:
    """A run ends."""
    record.set_attribute("outcome", {"state": state.value, "failure": failure})


def read_notes(record: StudyRecord) -> RunNotes:
    """What the last run noted."""
    outcome = record.attribute("outcome") or {}
    accounts = record.attribute("dataset_account") or {}
    return RunNotes(
        datasets={
            name: _facts(values, accounts.get(name))
            for name, values in (record.attribute("datasets") or {}).items()
        },
        tracking_uri=record.attribute("tracking_uri"),
        outcome=SearchState(outcome["state"]) if outcome else None,
        failure=outcome.get("failure"),
    )


def _plain(facts: DatasetInfo) -> dict[str, Any]:
    """The facts but for those that earlier versions of this package, which may read them, do not know."""
    values = dataclasses.asdict(dataclasses.replace(facts, account=None))
    return {name: value for name, value in values.items() if name not in _LATER_FACTS}


def _facts(values: Mapping[str, Any], account: Mapping[str, Any] | None) -> DatasetInfo:
    found = Account.from_json(account) if account else None
    return DatasetInfo(**{**values, "class_names": tuple(values["class_names"]), "account": found})
