"""How long training waits for its images: the decoded cache against a DataLoader with PIL transforms.

Both feed the same module through the same Trainer, in turn; only the images' way differs. The plain way is
the port's: an ``ImageFolder`` of jpegs, PIL's crop and flip, ``ToTensor``, ``Normalize``; no workers, or two.
A wait is the time from the end of one step to the beginning of the next, Lightning's own work included,
without each epoch's first (workers start there). Then each is asked for batches alone, as fast as it can make
them::

    python benchmarks/data_path.py --images cifar10-jpeg.zip [--batches 8] [--rounds 2]

Steps wait for their result only on a CPU; how long a GPU waits, benchmarks/gpu.py says.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from roofline import wait
from step import Speed
from table import Row, hardware, print_rows
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, open_dataset
from tune_rescon.models import build_from_spec, list_presets, resolve_network
from tune_rescon.training.cuda_graphs import choose_graph_capture
from tune_rescon.training.device import resolve_device
from tune_rescon.training.module import StepExecution, TrialModule, fit, make_trainer

#: Share of an epoch that may be waiting.
TARGET = 0.02


class Clock(Callback):
    """Seconds waited before each step, of each step, and of all together; the first step is not counted."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.steps: list[float] = []
        self.seconds = 0.0
        """Of an epoch, until the device has done it."""
        self._begun = self._since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if self._begun:
            self._lap(self.waits)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self._begun:
            self._lap(self.steps)
        else:
            wait(trainer.strategy.root_device.type)
            self._begun = self._since = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        wait(trainer.strategy.root_device.type)
        self.seconds = time.perf_counter() - self._begun

    def _lap(self, laps: list[float]) -> None:
        now = time.perf_counter()
        laps.append(now - self._since)
        self._since = now


class PlainImages(pl.LightningDataModule):
    """Training batches as the port makes them, from a folder with one folder a class."""

    def __init__(self, folder: Path, dataset: ImageDataset, config: TrialConfig, *, workers: int) -> None:
        super().__init__()
        self._side = dataset.train.images_NHWC.shape[1]
        steps = [
            transforms.RandomCrop(self._side, padding=config.crop_padding),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(dataset.mean, dataset.std),
        ]
        self._images = ImageFolder(str(folder), transforms.Compose(steps))
        self._batch_size, self._workers = config.batch_size, workers

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self._images,
            batch_size=self._batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self._workers,
        )


class Trainee:
    """A network that is trained a few batches at a time."""

    def __init__(self, config: TrialConfig, dataset: ImageDataset, device: str) -> None:
        self._placement = resolve_device(device, precision=config.precision)
        self.spec = resolve_network(config, classes=dataset.classes, in_channels=dataset.channels)
        network = build_from_spec(self.spec)
        self._module = TrialModule(
            network,
            config,
            StepExecution(
                placement=self._placement,
                graph_capture=choose_graph_capture(
                    config, self._placement, micro_batches=1, recomputes=False
                ),
            ),
            classes=dataset.classes,
            epochs=1,
            steps_per_epoch=10**6,
        )

    def train(self, data: pl.LightningDataModule, batches: int, *callbacks: Callback) -> Clock:
        """Train on the first batches of an epoch, one of them before the clock counts."""
        clock = Clock()
        trainer = make_trainer(
            epochs=1, placement=self._placement, gradient_clip=0.0, callbacks=[clock, *callbacks]
        )
        trainer.limit_train_batches, trainer.limit_val_batches = batches + 1, 0
        with self._placement.active():
            fit(trainer, self._module, data, None)
        return clock


def share(clocks: Iterable[Clock]) -> tuple[str, float]:
    """In words and as a number: what part of the time was waiting."""
    clocks = list(clocks)
    waits = [wait for clock in clocks for wait in clock.waits]
    waited, worked = sum(waits), sum(sum(clock.steps) for clock in clocks)
    low, median, high = statistics.quantiles(waits, n=4, method="inclusive")
    part = waited / (waited + worked)
    wait = f"{1e3 * median:.1f} ms a batch (quartiles {1e3 * low:.1f} to {1e3 * high:.1f})"
    return f"{100 * part:.2f} % of the time, {wait}, step {worked / len(waits):.2f} s", part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder or .zip with train/CLASS/*.jpg")
    parser.add_argument("--preset", choices=list_presets(), default="rescon_attention92_32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8, help="of an epoch of each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
    print(hardware(options.device, "torch", "pytorch-lightning"))
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    config = TrialConfig(preset=options.preset, batch_size=options.batch_size)
    asked = DatasetConfig(name="folder", path=str(options.images))
    dataset = open_dataset(asked, data_root=folder, cache_root=folder)
    trainee = Trainee(config, dataset, options.device)
    plain = unpacked(options.images, folder)
    ours = ImageDataModule(dataset, config, image_size=trainee.spec.image_size, seed=0)
    ways: dict[str, pl.LightningDataModule] = {
        "tune_rescon": ours,
        "PIL, no workers": PlainImages(plain, dataset, config, workers=0),
        "PIL, 2 workers": PlainImages(plain, dataset, config, workers=2),
    }
    title = f"{options.preset}, batch {options.batch_size}"
    print(f"{title}: waiting for images, n = {options.rounds} rounds of {options.batches} batches")
    clocks: dict[str, list[Clock]] = {name: [] for name in ways}
    for name in [name for _ in range(options.rounds) for name in ways]:
        clocks[name].append(trainee.train(ways[name], options.batches))
    parts = {}
    for name in ways:
        words, parts[name] = share(clocks[name])
        print(f"  {name:16} {words}")
    alone(ways, ours, options)
    part, others = parts["tune_rescon"], [parts[name] for name in ways if name != "tune_rescon"]
    print_rows(
        [
            Row(
                what=f"waiting for images, {title}, share of an epoch",
                measured=f"{part:.2%}; a DataLoader with PIL transforms {min(others):.1%} to"
                f" {max(others):.1%}; n = {options.rounds} x {options.batches} batches",
                target=f"<= {TARGET:.0%}",
                met=part <= TARGET,
            )
        ]
    )


def alone(
    ways: dict[str, pl.LightningDataModule], ours: ImageDataModule, options: argparse.Namespace
) -> None:
    """Batches without a network. Enough of them that a worker's start counts for little."""
    batches, rounds = 25 * options.batches, max(2, options.rounds)
    passes: dict[str, Callable[[], Iterable[Any]]] = {
        name: data.train_dataloader for name, data in ways.items()
    }
    passes["tune_rescon"] = lambda: ours.train_batches(epoch=0, device=options.device)
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for _, name in itertools.product(range(rounds), passes):
        started = time.perf_counter()
        made = sum(1 for _ in itertools.islice(passes[name](), batches))
        speeds[name].append(made * options.batch_size / (time.perf_counter() - started))
    print(f"batches alone, n = {rounds} rounds of {batches}")
    for name, values in speeds.items():
        print(f"  {name:16} {Speed.of(values)}")
    ratio = Speed.of(speeds["tune_rescon"]).median / max(
        Speed.of(values).median for name, values in speeds.items() if name != "tune_rescon"
    )
    print(f"  ratio to the better of the plain ones {ratio:.1f}")


def unpacked(images: Path, folder: Path) -> Path:
    """The training images as files, as an ImageFolder wants them."""
    if images.is_dir():
        return images / "train"
    with zipfile.ZipFile(images) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("train/")])
    return folder / "train"


if __name__ == "__main__":
    main()
