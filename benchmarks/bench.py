"""All of the benchmarks that have a target, one after the other, in one table (``make bench``).

An hour and a half on two cores. Each runs in a process of its own, and alone: nothing else should run
meanwhile.

    python benchmarks/bench.py [--images cifar10-jpeg.zip] [--only step,turnover] [--short]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from table import MARK, Row, hardware, print_rows, read_rows

#: What is run for each name, with ``{images}`` where images are needed.
COMMANDS: Mapping[str, Sequence[str]] = {
    "step": ("step.py",),
    "gpu": ("gpu.py",),
    "data": ("data_path.py", "--images", "{images}"),
    "memory": ("memory.py", "--images", "{images}"),
    "turnover": ("turnover.py",),
    "driver": ("driver_cost.py",),
    "own-time": ("own_time.py", "--rounds", "5"),
    "race": ("race.py",),
    "tracking": ("tracking.py",),
    "outage": ("tracking.py", "--outage"),
    "scheduling": ("scheduling.py",),
    "bookkeeping": ("scheduling.py", "--bookkeeping"),
}

#: Those of a quarter of an hour and more.
LONG = frozenset({"scheduling", "bookkeeping"})

_FOLDER = Path(__file__).parent


def main() -> None:
    """Run them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", help="a folder or .zip with train/CLASS/*.jpg")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(COMMANDS)}")
    parser.add_argument("--short", action="store_true", help=f"without {', '.join(sorted(LONG))}")
    options = parser.parse_args()
    every = [name for name in COMMANDS if not (options.short and name in LONG)]
    names = options.only.split(",") if options.only else every
    unknown = sorted(set(names) - set(COMMANDS))
    if unknown:
        parser.error(f"there is no benchmark named {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    rows = [row for name in names for row in _rows(name, options.images)]
    print(hardware("cpu", "torch", "ray", "optuna", "mlflow"))
    print_rows(rows)


def _rows(name: str, images: str | None) -> Iterator[Row]:
    command = COMMANDS[name]
    if "{images}" in command and images is None:
        yield Row(what=name, measured="needs --images", target="", met=None)
        return
    print(f"{name} ...", file=sys.stderr, flush=True)
    script, *arguments = (part.format(images=images) for part in command)
    done = subprocess.run(
        [sys.executable, str(_FOLDER / script), *arguments],
        env={**os.environ, MARK: "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        yield Row(what=name, measured=f"failed with code {done.returncode}", target="", met=False)
    for row in read_rows(done.stdout):
        print(row, file=sys.stderr, flush=True)  # the rest may take an hour
        yield row


if __name__ == "__main__":
    main()
