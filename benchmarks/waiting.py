"""What the images of a training cost a device: steps with them and without, in turn, by the real Trainer.

The host only queues a GPU's work, so a clock around the making of a batch says nothing of the device. The
time of some steps with images, minus that of the same steps on one batch that is already there, does.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_path import Trainee
from pytorch_lightning.callbacks import Callback

from tune_rescon.config import TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, Split
from tune_rescon.data.batch_sources import release
from tune_rescon.models import resolve_network


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and its batch."""

    preset: str
    batch_size: int

    @classmethod
    def parse(cls, text: str) -> Case:
        preset, _, batch_size = text.partition(":")
        return cls(preset=preset, batch_size=int(batch_size))


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A loader of one thing; Lightning would take a list for several loaders."""

    what: Any
    times: int

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        return iter([self.what] * self.times)


class OneBatch(ImageDataModule):
    """Every batch is the first one, made once."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        assert self.trainer is not None
        made = self.prepare(next(iter(loader)).to(self.trainer.strategy.root_device))
        return Repeated(what=made, times=len(loader))

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, *_: Any) -> Any:
        return batch


def random_dataset(images: int, side: int) -> ImageDataset:
    rng = np.random.default_rng(0)
    rows_N = np.arange(images)
    pixels_NHWC = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    split = Split(images_NHWC=pixels_NHWC, rows_N=rows_N, labels_N=rows_N % 10)
    return ImageDataset(
        train=split,
        val=split,
        test=split,
        classes=10,
        channels=3,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        class_names=tuple("0123456789"),
        digest="random",
    )


def show_images(case: Case, device: str, *, rounds: int) -> None:
    """Print the images' share of the time, for each place they can come from."""
    warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
    batches = 100 if device == "cuda" else 2
    config = TrialConfig(preset=case.preset, batch_size=case.batch_size)
    side = resolve_network(config, classes=10, in_channels=3).image_size
    dataset = random_dataset((batches + 1) * case.batch_size, side)
    trainee = Trainee(config, dataset, device)
    print(f"\n{case.preset}, batch {case.batch_size}: its images, n = {rounds} rounds of {batches} steps")
    for source in ("on the device", "copied ahead") if device == "cuda" else ("mapped",):
        if source == "copied ahead":
            release(torch.device(device))
        print(f"  {source:13} {images_share(trainee, dataset, config, batches, rounds)}", flush=True)
    if device == "cuda":
        data = ImageDataModule(dataset, config, image_size=side, seed=0)
        print(f"  {waits_of(trainee, data)}")


def images_share(
    trainee: Trainee, dataset: ImageDataset, config: TrialConfig, batches: int, rounds: int
) -> str:
    """Return the images' share of the time and the time of a step, in words."""
    side = trainee.spec.image_size
    modules = [kind(dataset, config, image_size=side, seed=0) for kind in (ImageDataModule, OneBatch)]
    pairs = [[trainee.train(data, batches).seconds for data in modules] for _ in range(rounds)]
    low, median, high = statistics.quantiles([1 - b / a for a, b in pairs], n=4, method="inclusive")
    step = statistics.median(a for a, _ in pairs) / batches
    return (
        f"{median:.1%} of the time is the images' (quartiles {low:.1%} to {high:.1%});"
        f" {1e3 * step:.2f} ms a step"
    )


#: What torch's warning of a wait says.
CALLED = "called a synchronizing CUDA operation"


class Warned(Callback):
    """Has torch warn where the host waits for the device, in every step but the first, which records."""

    def on_train_batch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("warn")

    def on_train_epoch_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def waits_of(trainee: Trainee, data: ImageDataModule, batches: int = 40) -> str:
    """Count where the host waits for the device, by torch's own warnings: the device is idle afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainee.train(data, batches, Warned())
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if CALLED in str(one.message)]
    often = sorted(set(places), key=places.count, reverse=True)[:6]
    where = f" ({', '.join(f'{name} x {places.count(name)}' for name in often)})" if often else ""
    return f"the host waited for the device {len(places)} times in {batches} steps{where}"
