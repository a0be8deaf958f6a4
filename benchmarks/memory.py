"""What a dataset costs in memory when several trials of a node train on it at once.

Starts as many processes as a node has trials. Each imports, makes batches of a few random images (so that
libraries and buffers are there), opens the dataset, and makes every batch of an epoch and its validation, as
a trial does. Then ``/proc/PID/smaps`` is read with all of them alive: the proportional set size of the
cache's file (a page shared by n processes counts 1/n in each), and by how much anonymous memory has grown.
Pages of libraries are left out: the kernel takes them away and brings them back as it likes. The same with a
copy in each process, as torchvision's datasets hold one::

    python benchmarks/memory.py --images cifar10-jpeg.zip [--trials 8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import Row, hardware, print_rows
from waiting import random_dataset

from tune_rescon.config import DatasetConfig, TrialConfig
from tune_rescon.data import ImageDataModule, ImageDataset, open_dataset

#: Megabytes of data that one more trial may cost.
TARGET = 10.0

#: Of the random images, pixels: CIFAR-10's.
SIDE = 32

_MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a process or of several, in bytes."""

    images: int
    """Proportional set size of the cache's file."""
    anonymous: int
    """Memory of its own."""


def read_sizes() -> Sizes:
    """Of this process."""
    images = anonymous = 0
    of_images = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            of_images = line.endswith("images.npy")
        elif first == "Pss:" and of_images:
            images += 1024 * int(rest[0])
        elif first == "Anonymous:":
            anonymous += 1024 * int(rest[0])
    return Sizes(images=images, anonymous=anonymous)


def trial(asked: DatasetConfig, root: Path, private: bool, pipe: Connection) -> None:
    """One process: reports when it is ready, its sizes on request, and continues on request; twice."""
    torch.set_num_threads(1)  # of many trials each has its share of the cores
    # Buffers of batches are a trial's, whatever it trains on.
    train(random_dataset(1000, SIDE))
    tell_sizes(pipe)
    dataset = open_dataset(asked, data_root=root, cache_root=root)
    if private:
        copy_NHWC = np.array(dataset.train.images_NHWC)
        own_train, own_val = (replace(split, images_NHWC=copy_NHWC) for split in (dataset.train, dataset.val))
        dataset = replace(dataset, train=own_train, val=own_val)
    train(dataset)
    tell_sizes(pipe)


def train(dataset: ImageDataset) -> None:
    """An epoch of a trial, but for the network."""
    side = dataset.train.images_NHWC.shape[1]
    data = ImageDataModule(dataset, TrialConfig(batch_size=64), image_size=side, seed=0)
    for batches in (data.train_batches(epoch=0), data.val_batches()):
        for _ in batches:
            pass


def tell_sizes(pipe: Connection) -> None:
    for answer in (lambda: None, read_sizes):
        pipe.send(answer())
        pipe.recv()


def ask_all(pipes: list[Connection]) -> list[Any]:
    """The reports of all processes, once all are ready; no process continues before that."""
    answers = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(None)
    return answers


def measure(trials: int, private: bool, asked: DatasetConfig, root: Path) -> Sizes:
    """What the dataset costs all trials together."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(trials)]
    processes = [context.Process(target=trial, args=(asked, root, private, there)) for _, there in pairs]
    for process, (_, there) in zip(processes, pairs, strict=True):
        process.start()
        there.close()  # so that the end of a process is the end of its pipe
    _, before, _, after = (ask_all([here for here, _ in pairs]) for _ in range(4))
    for process in processes:
        process.join()
    return Sizes(
        images=sum(sizes.images for sizes in after),
        anonymous=sum(now.anonymous - then.anonymous for now, then in zip(after, before, strict=True)),
    )


def row(name: str, trials: int, one: Sizes, many: Sizes) -> float:
    """Print a row of the table; returns the megabytes that one more trial costs."""
    sums = [sizes.images + sizes.anonymous for sizes in (one, many)]
    more = (sums[1] - sums[0]) / (trials - 1) / _MEGABYTE
    cells = [size / _MEGABYTE for size in (one.images, one.anonymous, many.images, many.anonymous)]
    print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {more:.1f} |", flush=True)
    return more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder or .zip with train/CLASS/*.jpg")
    parser.add_argument("--trials", type=int, default=8, help="at least 2")
    options = parser.parse_args()
    asked = DatasetConfig(name="folder", path=str(options.images))
    print(hardware("cpu", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = open_dataset(asked, data_root=root, cache_root=root)
        images_NHWC = dataset.train.images_NHWC
        print(f"{len(images_NHWC)} images, {images_NHWC.nbytes / _MEGABYTE:.0f} MB decoded; in MB, n = 1\n")
        columns = [f"{n}: {what}" for n in (1, options.trials) for what in ("cache file", "own memory")]
        print(f"| trials | {' | '.join(columns)} | one more trial |")
        print("|---|---|---|---|---|---|")
        costs: dict[str, float] = {}
        for name, private in (("the cache, mapped by all", False), ("a copy in each", True)):
            one, many = (measure(trials, private, asked, root) for trials in (1, options.trials))
            more = row(name, options.trials, one, many)
            costs[name] = more
    mapped, copied = costs.values()
    print_rows(
        [
            Row(
                what=f"memory: {options.trials} trials on one node over {len(images_NHWC):,} CIFAR-10 images",
                measured=f"{mapped:.1f} MB for one more trial, a copy in each {copied:.0f} MB, n = 1",
                target=f"<= {TARGET:g} MB",
                met=mapped <= TARGET,
            )
        ]
    )


if __name__ == "__main__":
    main()
