"""Lightning's data module: the batches of an epoch, and all work on them on the device.

Batches are a function of (seed, epoch) alone, so that a resumed trial gets the same batches. Stored rows are
copied to the device as bytes; augmentation, resizing and normalisation are done there.

Shape legend: B images of a batch, C channels, H = W side (stored side before resizing, image_size after it),
K classes, N images of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F

from tune_rescon.config import TrialConfig
from tune_rescon.data.augment import (
    crop_and_flip,
    cutmix,
    erase,
    jitter_colors,
    mixup,
    resized_crop_and_flip,
    rotate,
)
from tune_rescon.data.batch_sources import WHOLE, BatchSource, Shard, SplitName, choose_source
from tune_rescon.data.dataset import ImageDataset
from tune_rescon.data.policies import POLICIES, augment
from tune_rescon.data.preprocessing import Normalization

__all__ = [
    "Batches",
    "ImageDataModule",
    "RawBatch",
    "ShuffledBatches",
    "augmentation_rng",
    "balanced_order",
    "epoch_order",
]


IntArray = npt.NDArray[np.int64]


# numpy treats the seeds (s, e) and (s, e, 0) as equal, so each use of a seed begins with a separate number.
_ORDER_STREAM = 2
_AUGMENTATION_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Stored images without any processing. Lightning moves the tensors to the device.

    Attributes:
        images_BHWC: Images, uint8.
        labels_B: Labels, int64.
        augmentation_key: Seed of the augmentation besides the trial's: (epoch, number of the batch), followed
            by the rank unless the rank is 0. None: do not augment.
    """

    images_BHWC: Tensor
    labels_B: Tensor
    augmentation_key: tuple[int, ...] | None = None

    def to(self, device: torch.device | str) -> RawBatch:
        """Return the batch on a device."""
        return replace(
            self,
            images_BHWC=self.images_BHWC.to(device, non_blocking=True),
            labels_B=self.labels_B.to(device, non_blocking=True),
        )


def epoch_order(images: int, *, seed: int, epoch: int) -> IntArray:
    """Return the order of the images in an epoch.

    Args:
        images: Number of images.
        seed: Seed of the trial.
        epoch: The epoch, counted from 0.
    """
    return np.random.default_rng((_ORDER_STREAM, seed, epoch)).permutation(images)


def balanced_order(labels_N: IntArray, *, seed: int, epoch: int) -> IntArray:
    """Return the order of the images in an epoch that shows each class equally often.

    The numbers of images of the classes differ by one at most; chance decides which classes have one more.
    Within a class, the numbers of times that the images are shown differ by one at most. The order has as
    many images as the split.

    Args:
        labels_N: Classes of the images.
        seed: Seed of the trial.
        epoch: The epoch, counted from 0.
    """
    rng = np.random.default_rng((_ORDER_STREAM, seed, epoch))
    present = np.unique(labels_N)
    each, more = divmod(len(labels_N), len(present))
    shown = [
        _repeated(np.flatnonzero(labels_N == label), each + (position < more), rng)
        for position, label in enumerate(rng.permutation(present))
    ]
    return rng.permutation(np.concatenate(shown))


def _repeated(positions: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Return ``count`` positions: repeated passes over all of them, each in a new random order."""
    passes = -(-count // len(positions))
    return np.concatenate([positions[:0], *(rng.permutation(positions) for _ in range(passes))])[:count]


def augmentation_rng(key: tuple[int, ...], *, seed: int) -> np.random.Generator:
    """Return the random generator for the augmentation of one training batch, or of one shard of it.

    ``key`` is :attr:`RawBatch.augmentation_key`, ``seed`` that of the trial.
    """
    return np.random.default_rng((_AUGMENTATION_STREAM, seed, *key))


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Batches of a split in its stored order; the last may be shorter. Lightning accepts it as a loader.

    It is not a ``DataLoader``, because a batch is one indexing operation on an array. Worker processes and
    collation would only add cost.

    Attributes:
        images: Source of the split's images.
        batch_size: Number of images of a batch.
        shard: The shard of each batch that is yielded.
    """

    images: BatchSource
    batch_size: int
    shard: Shard = WHOLE

    def __len__(self) -> int:
        """Return the number of batches of one pass."""
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield the batches of one pass."""
        order, size = self.shard.select(np.arange(len(self.images)), self.batch_size)
        for images_BHWC, labels_B in self.images.batches(order, size):
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B)


@dataclass(frozen=True, kw_only=True)
class ShuffledBatches(Batches):
    """Batches of a split in a new order for each epoch.

    A short last batch is dropped unless it is the only batch.

    Attributes:
        seed: Seed of the order.
        epoch: Called at the start of each pass; returns the epoch, counted from 0.
        done: An epoch, and the number of its first batches that are done and not yielded again.
        balanced_N: Classes of the images, if each class is to be shown equally often; None: each image is
            shown once.
    """

    seed: int
    epoch: Callable[[], int]
    done: tuple[int, int] = (0, 0)
    balanced_N: IntArray | None = None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        # A short batch may contain a single image, on which batch norm cannot train.
        return max(1, len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[RawBatch]:
        """Yield the batches of one pass."""
        epoch, rank = self.epoch(), self.shard.rank
        first = self.done[1] if epoch == self.done[0] else 0
        order = self._order(epoch)[: len(self) * self.batch_size]
        order, size = self.shard.select(order[first * self.batch_size :], self.batch_size)
        for number, (images_BHWC, labels_B) in enumerate(self.images.batches(order, size), start=first):
            key = (epoch, number, rank) if rank else (epoch, number)
            yield RawBatch(images_BHWC=images_BHWC, labels_B=labels_B, augmentation_key=key)

    def _order(self, epoch: int) -> IntArray:
        if self.balanced_N is None:
            return epoch_order(len(self.images), seed=self.seed, epoch=epoch)
        return balanced_order(self.balanced_N, seed=self.seed, epoch=epoch)


#: Validation stores no activations for a backward pass, so its batches can be larger. On a GPU they are so
#: large that the device limits the speed, not the host, which launches the kernels (benchmarks/notes/gpu.md).
_VALIDATION_BATCH_FACTOR: Final = 2
_VALIDATION_BATCH_FACTOR_ON_GPU: Final = 8


class ImageDataModule(LightningDataModule):
    """Batches of one trial.

    The module is cheap to create: the dataset is shared, and no data is read until a loader is iterated.

    The order and augmentation of an epoch depend only on (seed, epoch). The global random states of torch,
    numpy and Python are neither read nor changed. Batches have channels_last memory format.

    Without a Trainer::

        for images_BCHW, labels_B in module.train_batches(epoch=0, device="cuda"): ...
    """

    def __init__(
        self,
        dataset: ImageDataset,
        config: TrialConfig,
        *,
        image_size: int,
        seed: int,
        eval_split: SplitName = "val",
        shard: Shard = WHOLE,
        done: tuple[int, int] = (0, 0),
    ) -> None:
        """Store the settings of the batches.

        Args:
            dataset: The open dataset, which other trials share.
            config: The trial's configuration; augmentation, normalisation and batch size are used.
            image_size: Side of the network's input, pixels.
            seed: Seed of order and augmentation.
            eval_split: The split on which Lightning validates; ``"test"`` for the single evaluation of a
                finished network.
            shard: This process's shard of every batch, if several processes train one trial.
            done: An epoch (counted from 0), and the number of its first batches that Lightning does not
                receive again.
        """
        super().__init__()
        self._eval_split: SplitName = eval_split
        self.dataset = dataset
        self.config = config
        self.image_size = image_size
        self.seed = seed
        self.shard = shard
        self._done = done
        self._to_input = Normalization(dataset.preprocessing(config, image_size))

    def train_dataloader(self) -> ShuffledBatches:
        """Return the raw training batches of the Trainer's current epoch; Lightning calls :meth:`prepare`."""
        return self._shuffled(self._current_epoch, self._device(), self._done)

    def val_dataloader(self) -> Batches:
        """Return all raw batches of the split on which the network is evaluated; none is dropped."""
        return self._in_order(self._eval_split, self._device())

    def transfer_batch_to_device(
        self, batch: RawBatch, device: torch.device, dataloader_idx: int
    ) -> RawBatch:
        """Copy the batch to the device, unless it is already there (a hook of Lightning).

        The copy is in bytes, a quarter of the size of floats.
        """
        del dataloader_idx
        return batch.to(device)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Compute the network's input on the device (a hook of Lightning)."""
        del dataloader_idx
        return self.prepare(batch)

    def train_batches(
        self, *, epoch: int, device: torch.device | str = "cpu", first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the prepared training batches of an epoch.

        Args:
            epoch: The epoch, counted from 0.
            device: Device of the batches.
            first: Number of the first batch to yield.
        """
        device = torch.device(device)
        batches = self._shuffled(lambda: epoch, device, (epoch, first))
        return (self.prepare(batch.to(device)) for batch in batches)

    def val_batches(self, *, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the prepared batches of the split on which the network is evaluated."""
        device = torch.device(device)
        return (self.prepare(batch.to(device)) for batch in self._in_order(self._eval_split, device))

    def prepare(self, batch: RawBatch) -> tuple[Tensor, Tensor]:
        """Augment (training batches only), resize, normalise, erase, mix.

        Returns:
            images_BCHW: float32, ``image_size`` square.
            targets: int64 labels B, or float32 B x K if mixup or cutmix is on.
        """
        if batch.augmentation_key is None:
            return self._to_input(batch.images_BHWC.permute(0, 3, 1, 2)), batch.labels_B
        rng = augmentation_rng(batch.augmentation_key, seed=self.seed)
        images_BCHW = self._augment(self._crop(batch.images_BHWC, rng), rng)
        images_BCHW = self._to_input(images_BCHW)
        if self.config.random_erasing:
            images_BCHW = erase(images_BCHW, rng, probability=self.config.random_erasing)
        return self._mix(images_BCHW, batch.labels_B, rng)

    def _crop(self, images_BHWC: Tensor, rng: np.random.Generator) -> Tensor:
        """Return crops in channels-first order: of the stored side, or already of the network's."""
        config = self.config
        if config.crop_scale == 1:
            cropped_BHWC = crop_and_flip(images_BHWC, rng, padding=config.crop_padding, flip=config.flip)
            return cropped_BHWC.permute(0, 3, 1, 2)
        return resized_crop_and_flip(
            images_BHWC.permute(0, 3, 1, 2),
            rng,
            smallest=config.crop_scale,
            ratio=config.crop_ratio,
            flip=config.flip,
            side=self.image_size,
        )

    def _augment(self, images_BCHW: Tensor, rng: np.random.Generator) -> Tensor:
        """Return bytes with other geometry and colours."""
        if self.config.rotation:
            images_BCHW = rotate(images_BCHW, rng, degrees=self.config.rotation)
        if self.config.color_jitter:
            images_BCHW = jitter_colors(images_BCHW, rng, strength=self.config.color_jitter)
        if self.config.augment != "none":
            images_BCHW = augment(images_BCHW, rng, POLICIES[self.config.augment])
        return images_BCHW

    def _mix(self, images_BCHW: Tensor, labels_B: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        mixes = [
            (mix, alpha) for mix, alpha in ((mixup, self.config.mixup), (cutmix, self.config.cutmix)) if alpha
        ]
        if not mixes:
            return images_BCHW, labels_B
        mix, alpha = mixes[int(rng.integers(len(mixes)))]
        targets_BK = F.one_hot(labels_B, self.dataset.classes).float()
        return mix(images_BCHW, targets_BK, rng, alpha=alpha)

    def _shuffled(
        self, epoch: Callable[[], int], device: torch.device, done: tuple[int, int]
    ) -> ShuffledBatches:
        return ShuffledBatches(
            images=choose_source(self.dataset, "train", device),
            batch_size=self.config.batch_size,
            shard=self.shard,
            seed=self.seed,
            epoch=epoch,
            done=done,
            balanced_N=self.dataset.train.labels_N if self.config.class_sampling == "balanced" else None,
        )

    def _in_order(self, split: SplitName, device: torch.device) -> Batches:
        images = choose_source(self.dataset, split, device)
        on_gpu = device.type == "cuda"
        factor = _VALIDATION_BATCH_FACTOR_ON_GPU if on_gpu else _VALIDATION_BATCH_FACTOR
        return Batches(images=images, batch_size=factor * self.config.batch_size, shard=self.shard)

    def _current_epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
