"""The attributes that a run writes to its study, so that a report needs only the study.

They are:

* ``datasets``: the description of each dataset, which determines the networks' costs. A machine without the
  images cannot compute it.
* ``dataset_account``: for each folder of images, the images found and the entries left out.
* ``tracking_uri``: MLflow's tracking URI.
* ``provenance``: the tags of the search's MLflow run, such as the commit and the devices.
* ``slots``: the number of trials at once in the first run, with which the scheduler ``auto`` plans.
* ``outcome``: how the run ended; empty while a run lasts.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tune_rescon import __version__
from tune_rescon.data import Account, DatasetInfo
from tune_rescon.errors import without_password
from tune_rescon.storage import absolute_url
from tune_rescon.tuning.result import SearchState
from tune_rescon.tuning.study import StudyRecord

__all__ = [
    "RunAttributes",
    "commit_tags",
    "planned_slots",
    "provenance",
    "read_run_attributes",
    "record_outcome",
    "record_provenance",
    "record_run",
    "recorded_uri",
]


_PACKAGES: Final = ("torch", "torchvision", "ray", "optuna", "pytorch-lightning", "mlflow")

#: The project's name in pyproject.toml.
_PROJECT: Final = "tune_rescon"

#: Variables that make git use another repository than the one of the folder.
_GIT_PLACES: Final = frozenset(
    f"GIT_{name}"
    for name in (
        *("ALTERNATE_OBJECT_DIRECTORIES", "CEILING_DIRECTORIES", "COMMON_DIR", "DIR", "INDEX_FILE"),
        *("NAMESPACE", "OBJECT_DIRECTORY", "PREFIX", "WORK_TREE"),
    )
)

#: Prefix of the names of Ray's resources that name the kinds of accelerator.
_ACCELERATOR: Final = "accelerator_type:"


def provenance(resources: Mapping[str, float]) -> dict[str, str]:
    """Return the tags of a search's MLflow run; ``resources`` are Ray's resources by name."""
    return {
        "tune_rescon.version": __version__,
        "tune_rescon.device": devices(resources),
        "version.python": platform.python_version(),
        **{f"version.{name}": version(name) for name in _PACKAGES},
        # If unknown, an empty tag replaces the value that an earlier driver may have sent.
        **dict.fromkeys(("mlflow.source.git.commit", "tune_rescon.dirty"), ""),
        **commit_tags(Path(__file__).parents[1]),
    }


def devices(resources: Mapping[str, float]) -> str:
    """Return a description of the devices on which trials run.

    >>> devices({"CPU": 16.0, "GPU": 2.0, "accelerator_type:H100": 1.0})
    '2 GPU (H100), 16 CPU'
    >>> devices({"CPU": 2.0}), devices({"CPU": 8.0, "GPU": 1.0})
    ('2 CPU', '1 GPU, 8 CPU')
    """
    kinds = sorted(name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
    gpus = resources.get("GPU", 0)
    named = f" ({', '.join(kinds)})" if kinds else ""
    return (f"{gpus:g} GPU{named}, " if gpus else "") + f"{resources.get('CPU', 0):g} CPU"


def commit_tags(package: Path) -> dict[str, str]:
    """Return tags with the commit of the checkout that ``package`` runs from, and whether it was changed.

    There are no tags if the package does not run from a checkout of this project, or git fails. A wheel may
    be in a virtual environment inside another repository, whose commit says nothing about this package.
    """
    checkout = package.resolve().parent
    if not _is_this_project(checkout):
        return {}
    # If the checkout's `.git` is unusable, git finds a repository around it.
    top, _, commit = _git(checkout, "rev-parse", "--show-toplevel", "HEAD").partition("\n")
    if not commit or Path(top) != checkout:
        return {}
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", package.name)
    return {"mlflow.source.git.commit": commit, "tune_rescon.dirty": str(bool(changed)).lower()}


def _is_this_project(checkout: Path) -> bool:
    # `.git` is a folder, or a file in a worktree and in a submodule.
    if not (checkout / ".git").exists():
        return False
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(project.get("project", {}).get("name") == _PROJECT)


def _git(checkout: Path, *arguments: str) -> str:
    """Return git's output; empty if git cannot be run or fails."""
    command = ["git", "--no-optional-locks", "-C", str(checkout)]
    # Git refuses a checkout of another user, which may name programs for git to run. The code in this one
    # runs already, so it is trusted.
    command += ["-c", f"safe.directory={checkout}", *arguments]
    # A hook of another repository sets these variables to that repository.
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}
    try:
        git = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return git.stdout.strip() if git.returncode == 0 else ""


#: Fields of a dataset's description that the record stores elsewhere or not at all.
_LATER_FIELDS: Final = ("account", "stored_side", "stored_images", "validation_tests")


@dataclass(frozen=True, kw_only=True)
class RunAttributes:
    """The attributes that the last run wrote; incomplete if an older version wrote the study."""

    datasets: Mapping[str, DatasetInfo] = field(default_factory=dict)
    tracking_uri: str | None = None
    """MLflow's tracking URI; None for the storage's own store. It contains no password, because many people
    read the record."""
    outcome: SearchState | None = None
    """How the last run ended; None if it still runs or was killed."""
    failure: str | None = None
    slots: int = 1
    """Number of trials at once with which the scheduler plans."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """See :func:`provenance`."""


def planned_slots(record: StudyRecord, slots: int) -> int:
    """Return the number of trials at once with which the first run planned, and record it in that run.

    A later run may have more or fewer slots. With the number of the first run, it has the same rungs.
    """
    recorded = record.attribute("slots")
    if recorded is None:
        record.set_attribute("slots", slots)
        return slots
    return int(recorded)


def record_provenance(record: StudyRecord, tags: Mapping[str, str]) -> None:
    """Record the tags of the search's MLflow run, because `report --sync` may be the first to send them."""
    record.set_attribute("provenance", dict(tags))


def record_run(record: StudyRecord, datasets: Mapping[str, DatasetInfo], tracking_uri: str | None) -> None:
    """Record the datasets and the tracking URI of a run when it begins.

    Args:
        record: The search's record.
        datasets: The description of each dataset, by name.
        tracking_uri: MLflow's tracking URI, or None for the storage's own store. A password is removed, and
            a relative path becomes absolute, because `report --sync` may run in another directory.
    """
    record.set_attribute("datasets", {name: _plain(info) for name, info in datasets.items()})
    accounts = {name: info.account.to_json() for name, info in datasets.items() if info.account}
    record.set_attribute("dataset_account", accounts)
    record.set_attribute("tracking_uri", recorded_uri(tracking_uri))
    record.set_attribute("outcome", None)


def recorded_uri(tracking_uri: str | None) -> str | None:
    """Return MLflow's tracking URI as :func:`record_run` records it."""
    return None if tracking_uri is None else without_password(absolute_url(tracking_uri))


def record_outcome(record: StudyRecord, state: SearchState, failure: str | None) -> None:
    """Record how a run ended.

    Args:
        record: The search's record.
        state: The final state of the run.
        failure: Why the search ended early, or None.
    """
    record.set_attribute("outcome", {"state": state.value, "failure": failure})


def read_run_attributes(record: StudyRecord) -> RunAttributes:
    """Read the attributes that the last run recorded."""
    stored = record.attributes()
    outcome, accounts = stored.get("outcome") or {}, stored.get("dataset_account") or {}
    return RunAttributes(
        datasets={
            name: _dataset_info(values, accounts.get(name))
            for name, values in (stored.get("datasets") or {}).items()
        },
        tracking_uri=stored.get("tracking_uri"),
        outcome=SearchState(outcome["state"]) if outcome else None,
        failure=outcome.get("failure"),
        slots=int(stored.get("slots") or 1),
        provenance=stored.get("provenance") or {},
    )


def _plain(info: DatasetInfo) -> dict[str, Any]:
    """Return the description without later fields, because an earlier version may read the record."""
    values = dataclasses.asdict(dataclasses.replace(info, account=None))
    return {name: value for name, value in values.items() if name not in _LATER_FIELDS}


def _dataset_info(values: Mapping[str, Any], account: Mapping[str, Any] | None) -> DatasetInfo:
    class_names = tuple(values["class_names"])
    parsed = Account.from_json(account) if account else None
    return DatasetInfo(**{**values, "class_names": class_names, "account": parsed})
