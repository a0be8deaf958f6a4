"""Search quality for real: schedulers search the handwritten digits for the same seconds of this machine.

Each search trains small residual attention networks on one slot for each core. The network of its winner is
then evaluated on the test images, which no search has seen::

    python benchmarks/real_quality.py --searches 5 --seconds 90
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import tune_rescon as tr
from tune_rescon.config import DatasetConfig
from tune_rescon.data import open_dataset
from tune_rescon.data.pixels import Normalization
from tune_rescon.tuning import SearchLocation

SCHEDULERS = {
    "auto": ["scheduler={type: auto}"],
    "asha, stop": ["scheduler={type: asha}"],
    "asha, promote": ["scheduler={type: asha, variant: promote}"],
    "random, full trainings": ["scheduler={type: none}", "sampler={type: random}"],
}

#: Small networks, so that a full training takes about a fifth of the time.
SETTINGS = (
    "initial=[]",
    "budget.trials=500",
    "fidelity={min: 1, max: 27}",
    "fixed.width=0.125",
    "dataset.limit=600",
    "parameters.depth={type: categorical, choices: [56, 92]}",
    "parameters.learning_rate={type: float, low: 0.0003, high: 1.0, log: true}",
)


def search(storage: Path, name: str, scheduler: str, *, seed: int, seconds: float) -> None:
    """Run one search in a process of its own."""
    settings = [*SETTINGS, *SCHEDULERS[scheduler], f"sampler.seed={seed}", f"budget.hours={seconds / 3600}"]
    command = [sys.executable, "-m", "tune_rescon.search", "--space", "digits", "--plain"]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--name", name, "--storage", str(storage)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")


def test_accuracy(storage: Path, name: str, cache: Path) -> tuple[float, int, int]:
    """Return the winner's accuracy on the test images, and the trials and epochs of the search."""
    result = tr.read_search(SearchLocation(storage=storage), name)
    assert result.best is not None, f"{name} has no trial with a finite value"
    checkpoint = result.kept_checkpoint(result.best)
    assert checkpoint is not None, f"the network of {name} is missing"
    network, about = tr.load_trained(checkpoint)
    test = open_dataset(DatasetConfig(name="digits"), data_root=cache, cache_root=cache).test
    assert test is not None, "the digits have test images"
    images_NHWC, labels_N = test.gather(np.arange(len(test)))
    images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
    with torch.inference_mode():
        predicted_N = network(Normalization(about.preprocessing)(images_NCHW)).argmax(1)
    right = int((predicted_N == torch.from_numpy(labels_N)).sum())
    return right / len(test), len(result.trials), sum(trial.epochs for trial in result.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=5, help="searches of each scheduler")
    parser.add_argument("--seconds", type=float, default=90, help="the budget of a search")
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS), default=list(SCHEDULERS))
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {scheduler: [] for scheduler in arguments.schedulers}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="real-quality-") as folder:
        storage, cache = Path(folder) / "runs", Path(folder) / "cache"
        for seed in range(arguments.searches):
            for index, scheduler in enumerate(arguments.schedulers):
                name = f"s{seed}-{index}"
                search(storage, name, scheduler, seed=seed, seconds=arguments.seconds)
                accuracy, trials, epochs = test_accuracy(storage, name, cache)
                found[scheduler].append(100 * accuracy)
                words = f"{accuracy:.4f} of {trials} trials, {epochs} epochs"
                print(f"{scheduler}, seed {seed}: {words}", flush=True)
    print("\n| scheduler | n | test accuracy of the winner, % |\n|---|---|---|")
    for scheduler, values in found.items():
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        print(f"| {scheduler} | {len(values)} | {statistics.mean(values):.2f} ± {error:.2f} |")
    print(f"\n± is the standard error; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
