"""What decoding a source into an empty cache costs, in two checkouts of this repository side by side.

Each round opens the images once with each checkout, in a process of its own, in turn and in changing order.
Compared are the processor seconds of ``open_dataset``, its decoding processes included, without the imports
before it: they can be compared beside other work too, wall seconds only on a quiet machine. The pixels of
both are compared as well::

    git worktree add ../before COMMIT
    python benchmarks/decoding.py --images cifar10-jpeg.zip ../before . [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any


def main() -> None:
    """Compare two checkouts; without them, decode once with the package that Python finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder or .zip of images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("checkouts", type=Path, nargs="*", help="two folders: before and after")
    options = parser.parse_args()
    if not options.checkouts:
        print(json.dumps(decode_once(options.images)))
    elif len(options.checkouts) == 2:
        compare(options.images, *options.checkouts, rounds=options.rounds)
    else:
        parser.error("give two checkouts")


def decode_once(images: Path) -> dict[str, Any]:
    """Decode into an empty cache; return the seconds used and a digest of the pixels."""
    # Imported here, because only the processes that decode have a checkout's package.
    from joblib.externals.loky import get_reusable_executor

    from tune_rescon.config import DatasetConfig
    from tune_rescon.data import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        used, started = processor_seconds(), time.perf_counter()
        asked = DatasetConfig(name="folder", path=str(images))
        dataset = open_dataset(asked, data_root=Path(folder), cache_root=Path(folder))
        wall = time.perf_counter() - started
        # Processes count once they have ended.
        get_reusable_executor().shutdown(wait=True)
        used = processor_seconds() - used
        pixels = blake2b(digest_size=8)
        for part in (dataset.train, dataset.test):
            pixels.update(part.images_NHWC.tobytes())
    return {"used": used, "wall": wall, "pixels": pixels.hexdigest()}


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compare(images: Path, before: Path, after: Path, *, rounds: int) -> None:
    """Print each round's seconds, and the ratios' median and range."""
    ratios = []
    for number in range(rounds):
        order = (before, after) if number % 2 == 0 else (after, before)
        found = {checkout: decode_with(checkout, images) for checkout in order}
        ratios.append(found[after]["used"] / found[before]["used"])
        same = "the same" if found[before]["pixels"] == found[after]["pixels"] else "other"
        seconds = ", ".join(
            f"{one['used']:.2f} (wall {one['wall']:.2f})" for one in (found[before], found[after])
        )
        print(
            f"processor seconds before, after: {seconds}; ratio {ratios[-1]:.3f}, {same} pixels", flush=True
        )
    print(
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), median and range"
        f" of n = {rounds}"
    )


def decode_with(checkout: Path, images: Path) -> dict[str, Any]:
    """Run :func:`decode_once` with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--images", str(images)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
