"""The files of one search: where each is, and how they are written without ever being half there."""

from __future__ import annotations

import csv
import io
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tune_rescon.errors import StorageError, explain
from tune_rescon.spaces import yaml_text
from tune_rescon.storage import StorageUrl, check_name, name_taken, no_such_search, parse_storage
from tune_rescon.tuning.record.summary import TrialSummary

__all__ = ["SearchFolder", "default_storage", "write_atomically"]

_ENVIRONMENT: Final = "TUNE_RESCON_STORAGE"


def default_storage() -> Path | StorageUrl:
    """``$TUNE_RESCON_STORAGE``, a directory or a URL; or ``./runs``."""
    return parse_storage(os.environ.get(_ENVIRONMENT) or "runs")


@dataclass(frozen=True, kw_only=True)
class SearchFolder:
    """``<storage>/<name>/`` and what is in it."""

    storage: Path
    name: str

    @property
    def path(self) -> Path:
        """The search's own directory."""
        return self.storage / self.name

    @property
    def space_yaml(self) -> Path:
        """The resolved space."""
        return self.path / "space.yaml"

    @property
    def study_url(self) -> str:
        """Where the study is unless ``--study`` names a database."""
        return f"sqlite:///{self.path / 'study.db'}"

    @property
    def trials_csv(self) -> Path:
        """One row a trial."""
        return self.path / "trials.csv"

    @property
    def best_yaml(self) -> Path:
        """The best trial's configuration and value."""
        return self.path / "best.yaml"

    @property
    def report_html(self) -> Path:
        """The report a browser opens."""
        return self.path / "report.html"

    @property
    def plots(self) -> Path:
        """The report's plots as images."""
        return self.path / "plots"

    @property
    def log(self) -> Path:
        """What the libraries had to say."""
        return self.path / "search.log"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, a directory for each trial, if anybody asked for them."""
        return self.path / "tensorboard"

    @property
    def mlflow_uri(self) -> str:
        """The tracking store shared by all searches of this storage."""
        return f"sqlite:///{self.storage / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where that store keeps its artifacts."""
        return self.storage / "mlartifacts"

    def checkpoints(self, number: int) -> Path:
        """The directory of one trial's checkpoints."""
        return self.path / "checkpoints" / f"trial_{number:04d}"

    def create(self) -> None:
        """Make the directory.

        Raises:
            StorageError: the name is no name or taken, or the storage cannot be written.
        """
        check_name(self.name)
        if self.path.exists():
            raise name_taken(self.name, self.path, begun=self.space_yaml.is_file())
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            rule = "the storage must be a directory that can be written"
            got = f"{self.storage} ({error.strerror})"
            raise StorageError(explain(rule, got=got, where="--storage")) from None

    def require(self, *, where: str = "--resume") -> None:
        """Check that there is a search of this name; ``where`` is the flag that names it.

        Raises:
            StorageError: there is none; the names there are, are listed.
        """
        if self.space_yaml.is_file():
            return
        found = sorted(path.parent.name for path in self.storage.glob("*/space.yaml"))
        raise no_such_search(self.name, self.storage, found, where=where)

    def remove(self, *, with_storage: bool) -> None:
        """Take back what a search that never began has made; an empty storage too if it made that."""
        shutil.rmtree(self.path, ignore_errors=True)
        if with_storage and not any(self.storage.iterdir()):
            self.storage.rmdir()

    def prune_checkpoints(self, number: int, *, keep: str | None) -> None:
        """Delete a trial's checkpoints but the file ``keep``; the directory too when nothing is left."""
        directory = self.checkpoints(number)
        if not directory.is_dir():
            return
        for path in directory.iterdir():
            if keep is None or path != Path(keep):
                path.unlink()
        if not any(directory.iterdir()):
            directory.rmdir()

    def write_trials(self, trials: Iterable[TrialSummary], parameters: Iterable[str]) -> None:
        """``trials.csv``: state, values and parameters, by number.

        ``parameters``: the names of the space's; those that trials of its earlier versions have follow them.
        ``none`` stands where a trial does not have a parameter.
        """
        trials = tuple(trials)
        names = list(dict.fromkeys([*parameters, *(name for t in trials for name in t.parameters)]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS, *names])
        for trial in trials:
            sampled = [trial.setting(name, "none") for name in names]
            writer.writerow([*_row(trial), *sampled])
        write_atomically(self.trials_csv, text.getvalue())

    def write_best(self, best: Mapping[str, Any]) -> None:
        """``best.yaml``."""
        write_atomically(self.best_yaml, yaml_text(best, block=True))


_COLUMNS: Final = (
    "trial",
    "state",
    "epochs",
    "value",
    "best_value",
    "best_epoch",
    "seconds",
    "values",
    "checkpoint",
)


def _row(trial: TrialSummary) -> list[Any]:
    return [
        trial.number,
        trial.state.value,
        trial.epochs,
        trial.value,
        trial.best_value,
        trial.best_epoch,
        round(trial.seconds, 3),
        " ".join(repr(value) for value in trial.values),
        trial.checkpoint if trial.checkpoint and _is_there(trial.checkpoint) else "",
    ]


def _is_there(checkpoint: str) -> bool:
    # A URL is believed: the record forgets what is deleted there.
    return "://" in checkpoint or Path(checkpoint).exists()


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` in one step, so that a reader never sees half of it."""
    # Two threads may write the same file; the later one's stays.
    half = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with half.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)
