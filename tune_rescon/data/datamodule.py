"""Lightning's view of a dataset: stored rows go to the device, everything else happens there.

Shape legend: B batch, C channels, H = W side (stored before, image_size after resizing), K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor

from tune_rescon.config import TrialConfig
from tune_rescon.data.augment import POLICIES, augment, crop_and_flip, cutmix, mixup, one_hot
from tune_rescon.data.batch_sources import Part, choose_supply
from tune_rescon.data.dataset import ImageDataset
from tune_rescon.data.loader import WHOLE, Batches, RawBatch, Shard, ShuffledBatches, augmentation_rng
from tune_rescon.data.pixels import Normalization

__all__ = [
    "ImageDataModule",
]


#: Validation keeps no activations for a backward pass, so its batches may be larger: on a GPU so large that
#: the device sets the pace, not the host that launches its kernels (benchmarks/NOTES.md).
_VALIDATION_BATCH_FACTOR: Final = 2
_VALIDATION_BATCH_FACTOR_ON_GPU: Final = 8


class ImageDataModule(LightningDataModule):
    """Batches of one trial. Cheap to make: the dataset is shared, nothing is read until a loader is iterated.

    Order and augmentation of an epoch depend on (seed, epoch) alone; torch's, numpy's and Python's own random
    states are neither read nor changed. Batches come out in channels_last memory format.

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
        judged: Part = "val",
        share: Shard = WHOLE,
        done: tuple[int, int] = (0, 0),
    ) -> None:
        """Keep what the batches depend on.

        Args:
            dataset: open; shared with other trials.
            config: its augmentation, normalisation and batch size are used.
            image_size: side of the squares the network sees, pixels.
            seed: of order and augmentation.
            judged: what Lightning validates on: ``"test"`` for a finished network that is judged once.
            share: of every batch, where several processes train one trial.
            done: an epoch (counted from 0) and how many of its batches Lightning is not given any more.
        """
        super().__init__()
        self._judged: Part = judged
        self.dataset = dataset
        self.config = config
        self.image_size = image_size
        self.seed = seed
        self.share = share
        self._done = done
        self._to_input = Normalization(dataset.preprocessing(config, image_size))

    def train_dataloader(self) -> ShuffledBatches:
        """Training batches of the Trainer's current epoch, raw; Lightning hands them to :meth:`prepare`."""
        begun, batches = self._done
        return self._shuffled(
            self._current_epoch, self._device(), lambda epoch: batches if epoch == begun else 0
        )

    def val_dataloader(self) -> Batches:
        """What the network is judged on, raw, none dropped."""
        return self._in_order(self._judged, self._device())

    def transfer_batch_to_device(
        self, batch: RawBatch, device: torch.device, dataloader_idx: int
    ) -> RawBatch:
        """Lightning's hook: bytes travel, a quarter of what floats would be, if they have not yet."""
        del dataloader_idx
        return batch.to(device)

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Lightning's hook: on the device, make what the network sees."""
        del dataloader_idx
        return self.prepare(batch)

    def train_batches(
        self, *, epoch: int, device: torch.device | str = "cpu", first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that epoch (counted from 0) trains on, prepared, from number ``first`` on."""
        device = torch.device(device)
        batches = self._shuffled(lambda: epoch, device, lambda _: first)
        return (self.prepare(batch.to(device)) for batch in batches)

    def val_batches(self, *, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """The validation batches, prepared."""
        device = torch.device(device)
        return (self.prepare(batch.to(device)) for batch in self._in_order("val", device))

    def prepare(self, batch: RawBatch) -> tuple[Tensor, Tensor]:
        """Augment (training batches only), resize, normalise, mix.

        Returns:
            images_BCHW: float32, ``image_size`` square.
            targets: int64 labels B, or float32 B x K where mixup or cutmix is on.
        """
        if batch.place is None:
            return self._to_input(batch.images_BHWC.permute(0, 3, 1, 2)), batch.labels_B
        rng = augmentation_rng(batch.place, seed=self.seed)
        images_BHWC = crop_and_flip(
            batch.images_BHWC, rng, padding=self.config.crop_padding, flip=self.config.flip
        )
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)
        if self.config.augment != "none":
            images_BCHW = augment(images_BCHW, rng, POLICIES[self.config.augment])
        return self._mix(self._to_input(images_BCHW), batch.labels_B, rng)

    def _mix(self, images_BCHW: Tensor, labels_B: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        mixes = [
            (mix, alpha) for mix, alpha in ((mixup, self.config.mixup), (cutmix, self.config.cutmix)) if alpha
        ]
        if not mixes:
            return images_BCHW, labels_B
        mix, alpha = mixes[int(rng.integers(len(mixes)))]
        return mix(images_BCHW, one_hot(labels_B, self.dataset.classes), rng, alpha=alpha)

    def _shuffled(
        self, epoch: Callable[[], int], device: torch.device, first: Callable[[int], int]
    ) -> ShuffledBatches:
        images = choose_supply(self.dataset, "train", device)
        return ShuffledBatches(
            images=images,
            batch_size=self.config.batch_size,
            share=self.share,
            seed=self.seed,
            epoch=epoch,
            first=first,
        )

    def _in_order(self, part: Part, device: torch.device) -> Batches:
        images = choose_supply(self.dataset, part, device)
        on_gpu = device.type == "cuda"
        factor = _VALIDATION_BATCH_FACTOR_ON_GPU if on_gpu else _VALIDATION_BATCH_FACTOR
        return Batches(images=images, batch_size=factor * self.config.batch_size, share=self.share)

    def _current_epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
