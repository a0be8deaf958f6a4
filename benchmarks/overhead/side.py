"""Runs a load on one side, in its own process: each search has its own Ray and its own imports."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from overhead.load import Figures, Load

__all__ = ["Side", "own_folder", "run_side"]

Side = Literal["ours", "plain"]

_BENCHMARKS = Path(__file__).resolve().parents[1]


def run_side(side: Side, load: Load, folder: Path) -> Figures:
    """Run ``load`` in ``folder``, by this package (``ours``) or by plain Ray Tune."""
    command = [sys.executable, "-m", "overhead.side", side, json.dumps(dataclasses.asdict(load)), str(folder)]
    paths = [str(_BENCHMARKS), str(_BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    # Each process that Ray begins has a log of its own.
    logs = (folder / "ray" / "session_latest" / "logs").glob("python-core-worker-*")
    figures = Figures(**json.loads(done.stdout.splitlines()[-1]))
    return dataclasses.replace(figures, processes=len(list(logs)))


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for one search, with a name short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as name:
        yield Path(name)


def main() -> None:
    """What the process does."""
    side, load, folder = sys.argv[1:]
    run = importlib.import_module(f"overhead.{side}").run
    print(json.dumps(dataclasses.asdict(run(Load(**json.loads(load)), Path(folder)))))


if __name__ == "__main__":
    main()
