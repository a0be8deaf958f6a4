"""The part of a visit to a GPU that watches a search (benchmarks/gpu_visit.py)."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visit import Found, Visit, images_of

if TYPE_CHECKING:
    from tune_rescon.tuning import TrialRecord


def search(visit: Visit, seconds: float) -> Found:
    """``--space att92`` for the time there is: utilisation, idle time by cause, the best by the clock."""
    runs = visit.folder / "runs"
    budget = max(0.9 * seconds - 45.0, 20.0)
    images = images_of(visit).path
    command = [sys.executable, "-m", "tune_rescon.search", "--space", "att92", "--name", "visit", "--plain"]
    command += ["--storage", str(runs), "--data-root", str(visit.folder), "--hours", f"{budget / 3600:.4f}"]
    command += ["--set", "dataset.name=folder", "--set", f"dataset.path={images}"]
    command += ["--set", f"resources_per_trial={{cpu: 4, gpu: {'auto' if visit.device == 'cuda' else 0}}}"]
    if visit.tiny:
        command += ["--trials", "2", *_sets(TINY_SEARCH)]
    watched = Watched(visit.folder / "utilisation.csv")
    started = time.time()
    environment = {**os.environ, "TUNE_RESCON_CACHE": str(visit.folder / "cache"), **_ray_folder(visit)}
    with watched.running():
        done = subprocess.run(command, check=False, env=environment)
    yield {"exit": done.returncode, "seconds": round(time.time() - started, 1), **watched.summary()}
    yield from _search_figures(runs, visit)


#: The search of a dry run: two small trials of one epoch.
TINY_SEARCH: Mapping[str, str] = {
    "dataset.limit": "100",
    "fidelity.max": "1",
    "scheduler": "{type: none}",
    "fixed.width": "0.25",
    "fixed.batch_size": "16",
    "parameters.depth.choices": "[56, 92]",
    "parameters.drop_path.when.in": "[92]",
    "parameters.image_size.choices": "[32]",
    "resources_per_trial": "{cpu: 1, gpu: 0}",
}


def _sets(settings: Mapping[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def _ray_folder(visit: Visit) -> dict[str, str]:
    """Ray's own temporary folder: below the visit's, if the path is short enough for its sockets."""
    short = len(str(visit.folder)) < 30
    return {"RAY_TMPDIR": str(visit.folder / "ray")} if short else {}


def _search_figures(runs: Path, visit: Visit) -> Found:
    from tune_rescon.reporting.incumbents import incumbents
    from tune_rescon.reporting.timeline import gpu_use, timeline
    from tune_rescon.tuning import SearchLocation, read_search

    result = read_search(SearchLocation(storage=runs, data_root=visit.folder), "visit")
    use, found = gpu_use(result), timeline(result)
    yield {
        "trials": len(result.trials),
        "epochs": sum(trial.epochs for trial in result.trials),
        "slots": found.slots,
        "slots_in_epochs": round(found.utilisation, 4),
        "gpu_utilisation_by_nvml": use.utilisation if use else None,
        "shares_of_time": {name: round(share, 4) for name, share in use.shares.items()} if use else None,
        "best": [
            {"hours": round(one.hours, 4), "trial": one.number, "epoch": one.epoch, "value": one.value}
            for one in incumbents(result)
        ],
        "best_by_clock": _best_by_clock(result.trials),
    }


def _best_by_clock(trials: Iterable[TrialRecord]) -> list[tuple[float, float]]:
    """Each better accuracy of any trial, with the seconds since the first trial was begun."""
    begun = min((trial.started.timestamp() for trial in trials if trial.started), default=0.0)
    epochs = sorted(
        (ms, value) for trial in trials for ms, value in zip(trial.times_ms, trial.values, strict=True)
    )
    best: list[tuple[float, float]] = []
    for ms, value in epochs:
        if not best or value > best[-1][1]:
            best.append((round(ms / 1000 - begun, 1), value))
    return best


class Watched:
    """The GPU's utilisation by ``nvidia-smi``, once a second, for a machine without nvidia-ml-py."""

    def __init__(self, path: Path) -> None:
        """Each reading is a line of ``path`` when it comes: seconds since 1970, and per cent of each GPU."""
        self._path = path
        self._readings: list[float] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        program = shutil.which("nvidia-smi")
        if program is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._read, args=(program, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _read(self, program: str, ended: threading.Event) -> None:
        query = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not ended.wait(1.0):
            told = subprocess.run(query, check=False, capture_output=True, text=True).stdout
            found = [line.strip() for line in told.splitlines() if line.strip().isdigit()]
            self._readings += [float(reading) / 100 for reading in found]
            with self._path.open("a") as file:
                file.write(",".join([f"{time.time():.1f}", *found]) + "\n")

    def summary(self) -> dict[str, Any]:
        """The mean, and the share of seconds in which it was idle or nearly so; nothing without readings."""
        if not self._readings:
            return {"nvidia_smi": None}
        idle = sum(reading < 0.05 for reading in self._readings) / len(self._readings)
        return {
            "nvidia_smi": round(statistics.fmean(self._readings), 4),
            "seconds_below_5_percent": round(idle, 4),
            "readings": len(self._readings),
        }
