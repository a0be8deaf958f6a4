"""Search quality for real: rivals search the same images for the same seconds of this machine.

Each search trains small residual attention networks on one slot for each core: the handwritten digits, or
5,000 images of a folder or .zip. The network of its winner is then evaluated on the test images, which no
search has seen, and so are the networks of its finalists, the trials that it has trained to the end::

    python benchmarks/real_quality.py --searches 5 --seconds 90
    python benchmarks/real_quality.py --searches 5 --seconds 1800 --images cifar10-jpeg.zip --json real.json

``--epochs`` and ``--set`` make the trainings shorter, for every rule alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from table import estimate_text

import tune_rescon as tr
from tune_rescon.config import DatasetConfig
from tune_rescon.data import open_dataset
from tune_rescon.data.preprocessing import Normalization
from tune_rescon.tuning import SearchLocation

SCHEDULERS = {
    "auto": ["scheduler={type: auto}"],
    "asha, stop": ["scheduler={type: asha}"],
    "asha, promote": ["scheduler={type: asha, variant: promote}"],
    "random, full trainings": ["scheduler={type: none}", "sampler={type: random}"],
}

#: The rivals whose code is not this package's: see ``real_rivals.py``.
OTHERS = ("Ray ASHAScheduler + OptunaSearch", "one epoch, then the best 8")

#: Small networks, so that a full training takes about a fifth of the time.
SETTINGS = (
    "initial=[]",
    "budget.trials=500",
    "fixed.width=0.125",
    "parameters.depth={type: categorical, choices: [56, 92]}",
)
OF_DIGITS = (
    "dataset.limit=600",
    "parameters.learning_rate={type: float, low: 0.0003, high: 1.0, log: true}",
)
OF_IMAGES = (
    "dataset.name=folder",
    "dataset.limit=5000",
    "fixed.batch_size=32",
    "fixed.precise_bn_batches=16",
    "resources_per_trial={cpu: 1, gpu: 0}",
    "parameters.image_size={type: categorical, choices: [32]}",
    "parameters.drop_path={type: float, low: 0.0, high: 0.2, when: {parameter: depth, in: [92]}}",
)

#: Largest number of test images that a network is evaluated on, and number of them at once.
TESTED: Final = 2000
BATCH: Final = 250


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of the searches, and the space that is searched."""

    space: str
    settings: tuple[str, ...]
    epochs: int
    """The last epoch of a training."""
    test: DatasetConfig

    @classmethod
    def of(cls, images: Path | None, *, epochs: int, changes: Iterable[str]) -> Data:
        """Return the digits, or the images of a folder or .zip, with changes of the space's settings."""
        settings = (*SETTINGS, f"fidelity={{min: 1, max: {epochs}}}")
        if images is None:
            return cls(
                space="digits",
                settings=(*settings, *OF_DIGITS, *changes),
                epochs=epochs,
                test=DatasetConfig(name="digits"),
            )
        path = str(images.resolve())
        return cls(
            space="att92",
            settings=(*settings, *OF_IMAGES, f"dataset.path={path}", *changes),
            epochs=epochs,
            test=DatasetConfig(name="folder", path=path, limit=5000, store_size=32),
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found; the paths are those of checkpoints."""

    winner: str
    finalists: tuple[str, ...]
    trials: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A search's result on the test images."""

    rival: str
    seed: int
    winner: float
    """The accuracy of the winner's network, in per cent."""
    finalists: float | None
    """The mean accuracy of the networks of the trials that were trained to the end; None without any."""
    finished: int
    trials: int
    epochs: int


def search(storage: Path, name: str, words: list[str], data: Data, *, seconds: float) -> Found:
    """Run one search of this package in a process of its own."""
    settings = [*data.settings, *words, f"budget.hours={seconds / 3600}"]
    command = [sys.executable, "-m", "tune_rescon.search", "--space", data.space, "--plain"]
    command += ["--name", name, "--storage", str(storage), *_set(settings)]
    _run(command, name)
    result = tr.read_search(SearchLocation(storage=storage), name)
    assert result.best is not None, f"{name} has no trial with a finite value"
    winner = result.kept_checkpoint(result.best)
    assert winner is not None, f"the network of {name} is missing"
    finished = [trial for trial in result.trials if trial.epochs == data.epochs]
    kept = [path for trial in finished if (path := result.kept_checkpoint(trial)) is not None]
    epochs = sum(trial.epochs for trial in result.trials)
    return Found(winner=winner, finalists=tuple(kept), trials=len(result.trials), epochs=epochs)


def other(storage: Path, name: str, words: list[str], data: Data, *, rival: str, seconds: float) -> Found:
    """Run one search of a rival in a process of its own."""
    script, folder = Path(__file__).with_name("real_rivals.py"), storage / name
    command = [sys.executable, str(script), rival, "--space", data.space, "--seconds", str(seconds)]
    command += ["--folder", str(folder), "--cache", str(storage / "cache"), *_set([*data.settings, *words])]
    _run(command, name)
    trained = json.loads((folder / "trained.json").read_text())
    assert trained, f"{name} has no trial with an epoch"
    return Found(
        winner=max(trained, key=lambda trial: trial["best"])["checkpoint"],
        finalists=tuple(trial["checkpoint"] for trial in trained if trial["epochs"] == data.epochs),
        trials=len(trained),
        epochs=sum(trial["epochs"] for trial in trained),
    )


def _set(settings: Iterable[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-2000:]}")


def accuracy(checkpoint: str, data: Data, cache: Path) -> float:
    """Return the accuracy of a network on the test images, in per cent."""
    network, about = tr.load_trained(checkpoint)
    test = open_dataset(data.test, data_root=cache, cache_root=cache).test
    assert test is not None, "the data have test images"
    count = min(len(test), TESTED)
    chosen = np.random.default_rng(0).permutation(len(test))[:count]
    prepare, right = Normalization(about.preprocessing), 0
    for begin in range(0, count, BATCH):
        images_NHWC, labels_N = test.gather(np.sort(chosen[begin : begin + BATCH]))
        images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2)
        with torch.inference_mode():
            predicted_N = network(prepare(images_NCHW)).argmax(1)
        right += int((predicted_N == torch.from_numpy(labels_N)).sum())
    return 100 * right / count


def rows(arguments: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Run the searches in turn, and yield the result of each."""
    storage, data = folder / "runs", Data.of(arguments.images, epochs=arguments.epochs, changes=arguments.set)
    for seed in range(arguments.searches):
        for index, rival in enumerate(arguments.rivals):
            name, words = f"s{seed}-{index}", [*SCHEDULERS.get(rival, []), f"sampler.seed={seed}"]
            if rival in SCHEDULERS:
                found = search(storage, name, words, data, seconds=arguments.seconds)
            else:
                found = other(folder / "others", name, words, data, rival=rival, seconds=arguments.seconds)
            finals = [accuracy(path, data, folder / "cache") for path in found.finalists]
            yield Row(
                rival=rival,
                seed=seed,
                winner=accuracy(found.winner, data, folder / "cache"),
                finalists=statistics.mean(finals) if finals else None,
                finished=len(finals),
                trials=found.trials,
                epochs=found.epochs,
            )


def accuracy_text(values: Iterable[float | None]) -> str:
    """Return the mean and its standard error; a search without the value does not count."""
    known = [value for value in values if value is not None]
    return f"{estimate_text(known)}, n = {len(known)}" if known else "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--searches", type=int, default=5, help="searches of each rival")
    parser.add_argument("--seconds", type=float, default=90, help="the budget of a search")
    parser.add_argument("--images", type=Path, help="a folder or .zip of images; default: the digits")
    parser.add_argument("--epochs", type=int, default=27, help="the last epoch of a training")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change the space")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    everyone = [*SCHEDULERS, *OTHERS]
    parser.add_argument("--rivals", nargs="+", choices=everyone, default=everyone, metavar="RIVAL")
    arguments = parser.parse_args()
    began, found = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="real-quality-") as folder:
        for row in rows(arguments, Path(folder)):
            found.append(row)
            print(row, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    print(
        "\n| rival | winner's test accuracy, % | finalists' | finished, trials, epochs |\n|---|---|---|---|"
    )
    for rival in arguments.rivals:
        of = [row for row in found if row.rival == rival]
        counts = ", ".join(
            f"{statistics.mean(values):.0f}"
            for values in zip(*((row.finished, row.trials, row.epochs) for row in of), strict=True)
        )
        winners, finalists = (row.winner for row in of), (row.finalists for row in of)
        print(f"| {rival} | {accuracy_text(winners)} | {accuracy_text(finalists)} | {counts} |")
    print(f"\n± is the standard error; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
